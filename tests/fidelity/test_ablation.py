"""An ablation counts the cases that it changes, and compares these alone."""

from llmsim.fidelity.ablation import ABLATIONS, ablate
from llmsim.fidelity.cases import Case
from llmsim.fidelity.scenarios import DEFAULTS

LAB = {
    "source": "lab",
    "model_key": "llama-3.1-8b",
    "gpu": "h100-sxm",
    "tp": "1",
    "engine": "vllm",
    "engine_version": "0.15.1",
    "isl": "300",
    "osl": "8",
    "arrival": "closed loop",
    "concurrency": "2",
}
MEASURED = {("ttft", "mean"): 0.03, ("tpot", "mean"): 0.007}


def test_only_the_cases_that_an_assumption_touches_are_compared():
    drawn = {**LAB, "workload": "InferenceX random (U[0.8,1.0])"}
    cases = [Case("fixed", "A", LAB, MEASURED), Case("drawn", "A", drawn, MEASURED)]
    found = {each.name: each for each in ablate(cases, DEFAULTS)}
    assert set(found) == set(ABLATIONS)
    assert found["as it is"].changed == 2
    assert found["equal lengths"].changed == 1
    assert found["no two prompts alike"].changed == 0
    assert found["engine's default batch limits"].changed == 0
    way = found["no way to the engine"]
    assert way.changed == 2
    # 15.6 ms less of TTFT, seen by the client
    assert way.errors["ttft"].bias < way.before["ttft"].bias - 0.3
