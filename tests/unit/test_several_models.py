"""Several models in one fleet: whose request goes where, and that they do not know one another."""

from dataclasses import replace

import pytest

import llmsim as ls
from llmsim.scenario import build_workload
from llmsim.study import single

SHORT = {"traffic.duration_s": 12}
SERVED = ["ttft_s", "e2e_s", "itl_max_s", "prompt_tokens", "output_tokens"]


class Only:
    """The requests of a workload for one model."""

    def __init__(self, inner, model):
        self.inner, self.model = inner, model
        self.total, self.closed_loop, self.programs = None, None, None
        self.clients, self.slo_classes, self.skipped_rows = (), (), 0

    def chunks(self):
        for chunk in self.inner.chunks():
            mine = chunk.model == self.model
            columns = {
                name: getattr(chunk, name)[mine]
                for name in chunk.__slots__
                if name not in ("segments", "model", "slo_class", "images")
            }
            yield replace(chunk, **columns, model=None)


@pytest.mark.parametrize("routing", ["round-robin", "least-loaded"])
def test_each_model_is_served_as_if_it_were_alone(routing, monkeypatch):
    both = {**SHORT, "fleet.routing": routing, "fleet.pools.small.replicas": 3}
    whole = ls.Scenario.load("two-models").override(both)
    rows = ls.run(whole).requests
    alone = {
        "small": {"fleet.pools.large-prefill": None, "fleet.pools.large-decode": None},
        "large-decode": {"fleet.pools.small": None},
    }
    for number, (pool, without) in enumerate(alone.items()):
        mine = Only(build_workload(whole), number)
        monkeypatch.setattr(single, "build_workload", lambda _, mine=mine: mine)
        model = "llama-3.1-70b" if number else "llama-3.1-8b"
        other = ls.run(whole, {**without, "model": model, "traffic.models": None}).requests
        seen = rows[rows["pool"] == pool]
        assert len(seen) == len(other) > 40
        assert seen[SERVED].values.tolist() == other[SERVED].values.tolist()


def test_models_are_drawn_apart_from_everything_else():
    mixed = ls.run("two-models", SHORT).requests
    plain = {
        "fleet.pools.large-prefill": None,
        "fleet.pools.large-decode": None,
        "traffic.models": None,
    }
    one = ls.run("two-models", SHORT | plain).requests
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert mixed[column].tolist() == one[column].tolist()
    assert (mixed["pool"] == "small").mean() == pytest.approx(0.8, abs=0.06)


def test_every_model_has_metrics_of_its_own():
    ran = ls.run("two-models", SHORT)
    assert ls.run("quickstart", {"traffic.requests": 50}).by_model == {}
    for model, pool in {"llama-3.1-8b": "small", "llama-3.1-70b": "large-decode"}.items():
        rows = ran.requests[ran.requests["pool"] == pool]
        told = ran.by_model[model]
        assert told["requests"] == len(rows)
        assert told["ttft_mean_s"] == pytest.approx(rows["ttft_s"].mean())
        met = (rows["ttft_s"] <= 2.0) & ~(rows["tpot_s"] > 0.05)
        assert told["slo_attained_frac"] == pytest.approx(met.mean())


def traced(tmp_path, by_client):
    lines = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    for at in range(40):
        model = "GPT-4" if at % 4 == 0 else "ChatGPT"
        lines.append(f"{at},{model},100,10,110,API log")
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    traffic = {"trace": {"kind": "burstgpt", "path": str(path)}, "model_by_client": by_client}
    return ls.run("two-models", {"traffic": None} | {f"traffic.{k}": v for k, v in traffic.items()})


def test_clients_of_a_trace_may_say_the_model(tmp_path):
    rows = traced(tmp_path, {"GPT-4 API log": "llama-3.1-70b"}).requests
    large = rows["pool"] == "large-decode"
    assert large.sum() == 10
    assert set(rows[large]["client"]) == {"GPT-4 API log"}
    with pytest.raises(ls.LlmsimError, match=r"no client 'GPT-5 API log'.*Did you mean 'GPT-4 API"):
        traced(tmp_path, {"GPT-5 API log": "llama-3.1-70b"})


def test_the_limits_of_one_model_are_not_those_of_another():
    small = {"fleet.pools.large-decode.engine.max_model_len": 1000}
    rows = ls.run("two-models", SHORT | small).requests
    assert (rows[rows["pool"] == "small"]["outcome"] == "finished").all()
    assert (rows[rows["pool"] != "small"]["outcome"] == "rejected").any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traffic.models": None}, "models: is missing: pools serve llama-3.1-8b, llama-3.1-70b"),
        ({"fleet.pools.small.model": "qwen3-14b"}, "has no share for qwen3-14b"),
        ({"traffic.models.llama-3_1-8b": 1}, "no pool serves 'llama-3_1-8b'. Did you mean"),
        ({"fleet.pools.small.model": "llama-3.1-7b"}, "unknown model 'llama-3.1-7b'"),
        (
            {"fleet.pools.large-decode.model": None},
            "a pool of llama-3.1-70b has role prefill, none has",
        ),
        ({"fleet.gateway": {}}, "several models do not go together with fleet.gateway"),
    ],
)
def test_what_does_not_go_together_is_said(changes, message):
    with pytest.raises(ls.LlmsimError, match=message):
        ls.run("two-models", changes)
