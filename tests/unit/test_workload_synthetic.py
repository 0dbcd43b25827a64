"""Generated workloads: moments, independence of the streams, chunking, identity of prompts."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.core.errors import InputError, TraceError
from llmsim.workload import (
    ARRIVALS,
    LENGTHS,
    PROMPTS,
    TRACES,
    ClosedLoop,
    RequestChunk,
    SyntheticWorkload,
)

APART = ("segments", "model", "slo_class", "images")  # lists, or none where nobody says
COLUMNS = tuple(name for name in RequestChunk.__dataclass_fields__ if name not in APART)

OPEN_ARRIVALS = {
    "poisson": {"rate_rps": 20.0},
    "gamma": {"rate_rps": 20.0, "cv": 3.0},
    "deterministic": {"rate_rps": 20.0},
    "burst": {"rate_rps": 20.0},
    "burstgpt-like": {"rate_rps": 20.0},
}
LENGTH_LAWS = {
    "fixed": {"prompt_tokens": 100, "output_tokens": 20},
    "uniform": {
        "prompt_min_tokens": 10,
        "prompt_max_tokens": 99,
        "output_min_tokens": 1,
        "output_max_tokens": 4,
    },
    "lognormal": {"prompt_mean_tokens": 1000, "output_mean_tokens": 220, "prompt_cv": 1.2},
    "short-and-long": {
        "long_frac": 0.12,
        "short_mean_tokens": 500,
        "long_mean_tokens": 16_000,
        "output_mean_tokens": 1,
        "short_cv": 0.3,
    },
    "trace": {"path": "burstgpt-like.csv.gz", "format": "burstgpt", "sample_rows": 500},
    "burstgpt-like": {},
}
PROMPT_LAWS = {
    "distinct": {},
    "pool": {"prompts": 50, "zipf_exponent": 1.1},
    "shared-prefix": {"prefix_tokens": 300, "groups": 7},
    "documents": {"documents": 40, "document_tokens": 50, "per_prompt": 3, "prefix_tokens": 20},
}


def build(arrivals="poisson", lengths="lognormal", prompts="distinct", seed=1, **extent):
    return SyntheticWorkload(
        ARRIVALS.get(arrivals)(**OPEN_ARRIVALS[arrivals]),
        LENGTHS.get(lengths)(**LENGTH_LAWS[lengths]),
        prompts=PROMPTS.get(prompts)(**PROMPT_LAWS[prompts]),
        seed=seed,
        **extent,
    )


def columns_of(workload):
    chunks = list(workload.chunks())
    joined = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks]).tolist()
        for name in COLUMNS
    }
    joined["segments"] = [
        pieces for chunk in chunks for pieces in chunk.segments or [None] * len(chunk)
    ]
    return joined


def digest(workload):
    """A hash over all columns, the same wherever chunks end."""
    return hashlib.sha256(repr(columns_of(workload)).encode()).hexdigest()


def arrivals_s(kind, requests, seed=1, **parameters):
    sample = ARRIVALS.get(kind)(**parameters).sampler(seed)
    return sample(requests) / 1e9


def test_every_registered_law_is_tried_here():
    assert set(OPEN_ARRIVALS) == set(ARRIVALS.names()) - {"closed-loop"}
    assert set(LENGTH_LAWS) == set(LENGTHS.names())
    assert set(PROMPT_LAWS) == set(PROMPTS.names())


@pytest.mark.parametrize(("cv", "kind"), [(1.0, "poisson"), (0.5, "gamma"), (3.0, "gamma")])
def test_renewal_rate_and_cv(cv, kind):
    n, parameters = 200_000, {"rate_rps": 8.0} | ({"cv": cv} if kind == "gamma" else {})
    gaps = np.diff(arrivals_s(kind, n, **parameters), prepend=0.0)
    # Standard error of the mean is cv/sqrt(n) of it; four of them.
    assert gaps.mean() == pytest.approx(1 / 8.0, rel=4 * cv / n**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_gamma_of_cv_one_has_exponential_gaps():
    gaps = np.diff(arrivals_s("gamma", 100_000, rate_rps=2.0, cv=1.0))
    for t in (0.1, 0.5, 1.5):
        assert np.mean(gaps > t) == pytest.approx(np.exp(-2.0 * t), abs=4 * 0.5 / 100_000**0.5)


def test_deterministic_does_not_drift():
    times = ARRIVALS.get("deterministic")(rate_rps=3.0).sampler(0)(9_000_001)
    assert times[0] == 0
    assert times[-1] == 3_000_000 * 10**9


def test_burst_without_modulation_is_a_renewal_with_its_hourly_profile():
    profile = [0.0] * 12 + [2.0] * 12
    times = arrivals_s(
        "burst",
        100_000,
        rate_rps=1.0,
        cv=1.0,
        by_hour=tuple(profile),
        day_sigma=0.0,
        modulation_sigma=0.0,
    )
    hour = times % 86_400 // 3600
    assert hour.min() == 12
    counts = np.bincount(hour[times < 86_400].astype(int), minlength=24)[12:]
    assert np.all(abs(counts - 7200) < 5 * 7200**0.5)
    assert counts.sum() == pytest.approx(86_400, abs=5 * 86_400**0.5)


def test_warping_in_operational_time_keeps_window_counts_dispersed():
    """Counts in long windows of a Gamma renewal have variance over mean cv², not 0."""
    times = arrivals_s(
        "burst",
        1_500_000,
        rate_rps=20.0,
        cv=2.0,
        by_hour=(1.0,) * 24,
        day_sigma=0.0,
        modulation_sigma=0.0,
    )
    counts = np.bincount((times // 100).astype(int))[1:-1]
    # 750 windows: the standard error of a variance is sqrt(2/750) = 5% of it.
    assert counts.var() / counts.mean() == pytest.approx(4.0, rel=0.2)


def test_burst_mean_rate_over_many_days():
    one_day = [
        ARRIVALS.get("burst")(rate_rps=0.05, day_sigma=0.5).days(seed, "burst")
        for seed in range(60)
    ]
    counts = [len(next(day)) for day in one_day]
    # The daily level has a CV of sqrt(exp(0.25) - 1) = 0.53: 7% standard error over 60.
    assert np.mean(counts) == pytest.approx(0.05 * 86_400, rel=0.28)
    assert np.std(counts) / np.mean(counts) > 0.3


def test_lognormal_mean_and_cv():
    laws = {"prompt_mean_tokens": 1000, "prompt_cv": 1.2, "output_mean_tokens": 220}
    prompt, output = LENGTHS.get("lognormal")(**laws).sampler(3, None, "requests")(400_000)
    assert prompt.mean() == pytest.approx(1000, rel=4 * 1.2 / 400_000**0.5)
    assert prompt.std() / prompt.mean() == pytest.approx(1.2, rel=0.05)
    assert output.mean() == pytest.approx(220, rel=4 / 400_000**0.5)
    assert output.std() / output.mean() == pytest.approx(1.0, rel=0.05)
    assert abs(np.corrcoef(np.log(prompt), np.log(output))[0, 1]) < 0.01


def test_short_and_long_prompts():
    law = LENGTHS.get("short-and-long")(**LENGTH_LAWS["short-and-long"])
    prompt, output = law.sampler(3, None, "requests")(100_000)
    is_long = prompt == 16_000
    assert is_long.mean() == pytest.approx(0.12, abs=4 * (0.12 * 0.88 / 100_000) ** 0.5)
    assert prompt[~is_long].mean() == pytest.approx(500, rel=4 * 0.3 / 88_000**0.5)
    assert set(output.tolist()) == {1}


def test_lognormal_clips_and_constant():
    law = LENGTHS.get("lognormal")(1000, 220, 2.0, 0.0, prompt_max_tokens=1500)
    prompt, output = law.sampler(3, None, "requests")(20_000)
    assert prompt.max() == 1500
    assert prompt.min() >= 1
    assert set(output.tolist()) == {220}


def test_lognormal_rank_correlation():
    law = LENGTHS.get("lognormal")(1000, 220, rank_correlation=0.3)
    prompt, output = law.sampler(3, None, "requests")(100_000)
    ranks = [np.argsort(np.argsort(values)) for values in (prompt, output)]
    assert np.corrcoef(ranks)[0, 1] == pytest.approx(0.3, abs=0.015)


def test_uniform_reaches_both_ends_evenly():
    law = LENGTHS.get("uniform")(**LENGTH_LAWS["uniform"])
    prompt, output = law.sampler(3, None, "requests")(100_000)
    assert (prompt.min(), prompt.max()) == (10, 99)
    assert np.bincount(output)[1:].tolist() == pytest.approx([25_000] * 4, rel=0.04)


def test_lengths_from_a_trace_are_its_pairs():
    rows = list(TRACES.get("burstgpt")(path="burstgpt-like.csv.gz").open(0, None).chunks())
    known = {
        pair
        for chunk in rows
        for pair in zip(chunk.prompt_tokens.tolist(), chunk.output_tokens.tolist(), strict=True)
    }
    law = LENGTHS.get("trace")(path="burstgpt-like.csv.gz", format="burstgpt")
    prompt, output = law.sampler(0, None, "requests")(50_000)
    assert set(zip(prompt.tolist(), output.tolist(), strict=True)) <= known
    whole = np.concatenate([chunk.prompt_tokens for chunk in rows])
    assert prompt.mean() == pytest.approx(whole.mean(), rel=5 * whole.std() / whole.mean() / 223)


def test_a_pool_sends_the_same_prompts_again():
    found = columns_of(build(prompts="pool", requests=20_000))
    lengths = {}
    for pieces, prompt in zip(found["segments"], found["prompt_tokens"], strict=True):
        ((key, length),) = pieces
        assert length == prompt
        assert lengths.setdefault(key, length) == length
    assert len(lengths) == 50
    share = np.bincount([pieces[0][0] for pieces in found["segments"]]) / 20_000
    weights = np.arange(1, 51) ** -1.1
    assert share[:5] == pytest.approx(weights[:5] / weights.sum(), rel=0.1)


def test_shared_prefixes_come_on_top_and_the_rest_is_unique():
    plain = columns_of(build(requests=5_000))
    found = columns_of(build(prompts="shared-prefix", requests=5_000))
    assert found["prompt_tokens"] == [tokens + 300 for tokens in plain["prompt_tokens"]]
    heads = {pieces[0] for pieces in found["segments"]}
    tails = [pieces[1] for pieces in found["segments"]]
    assert heads == {(group, 300) for group in range(7)}
    assert [length for _, length in tails] == plain["prompt_tokens"]
    assert len({key for key, _ in tails} | {key for key, _ in heads}) == 5_007


def test_documents_come_in_any_order_and_never_twice():
    plain = columns_of(build(requests=20_000))
    found = columns_of(build(prompts="documents", requests=20_000))
    assert found["prompt_tokens"] == [tokens + 170 for tokens in plain["prompt_tokens"]]
    own = [pieces[-1] for pieces in found["segments"]]
    assert [length for _, length in own] == plain["prompt_tokens"]
    drawn = np.array([[key for key, _ in pieces[1:-1]] for pieces in found["segments"]])
    assert {pieces[0] for pieces in found["segments"]} == {(40, 20)}
    assert {length for pieces in found["segments"] for _, length in pieces[1:-1]} == {50}
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert len({key for key, _ in own}) == 20_000
    assert not {key for key, _ in own} & set(range(41))
    # each place has all of them alike, the k-th as often as 1/k asks for, drawn without repeats
    for place in range(3):
        share = np.bincount(drawn[:, place], minlength=40) / 20_000
        assert share[0] == pytest.approx(np.mean(drawn == 0), rel=0.05)
    first, second = np.mean(np.any(drawn == 0, axis=1)), np.mean(np.any(drawn == 1, axis=1))
    assert (first, second) == pytest.approx(_among_three(40)[:2], abs=0.015)


def _among_three(members):
    """How often the k-th is among three drawn one after another, with weights of 1/k."""
    weights = 1.0 / np.arange(1, members + 1)
    weights /= weights.sum()
    found = np.zeros(members)
    for i, one in enumerate(weights):
        for j, two in enumerate(weights):
            if i == j:
                continue
            both = one * two / (1 - one)
            third = both * weights / (1 - one - weights[j])
            third[[i, j]] = 0.0
            found += third
            found[i] += both
            found[j] += both
    return found


def test_each_law_draws_from_its_own_stream():
    base = columns_of(build(requests=3_000))
    lengths_changed = columns_of(build(lengths="fixed", prompts="pool", requests=3_000))
    assert lengths_changed["arrival_ns"] == base["arrival_ns"]
    arrivals_changed = columns_of(build(arrivals="gamma", requests=3_000))
    assert arrivals_changed["prompt_tokens"] == base["prompt_tokens"]
    assert arrivals_changed["output_tokens"] == base["output_tokens"]
    assert arrivals_changed["arrival_ns"] != base["arrival_ns"]
    output_changed = SyntheticWorkload(
        ARRIVALS.get("poisson")(20.0), LENGTHS.get("lognormal")(1000, 9, 1.2), seed=1, requests=3000
    )
    assert columns_of(output_changed)["prompt_tokens"] == base["prompt_tokens"]
    assert columns_of(build(seed=2, requests=3_000))["arrival_ns"] != base["arrival_ns"]


@pytest.mark.parametrize("arrivals", OPEN_ARRIVALS)
@pytest.mark.parametrize("prompts", PROMPT_LAWS)
@pytest.mark.many
def test_twice_is_the_same(arrivals, prompts):
    workload = build(arrivals, prompts=prompts, requests=2_000)
    assert columns_of(workload) == columns_of(workload)


CASES = [(a, "lognormal", "distinct") for a in OPEN_ARRIVALS]
CASES += [("poisson", length, "distinct") for length in LENGTH_LAWS]
CASES += [("poisson", "uniform", prompt) for prompt in PROMPT_LAWS]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="/".join)
@settings(max_examples=examples(8), deadline=None)
@given(requests=st.integers(1, 700), chunk_rows=st.integers(1, 300))
def test_chunk_size_does_not_matter(case, requests, chunk_rows):
    whole = columns_of(build(*case, requests=requests))
    assert columns_of(build(*case, requests=requests, chunk_rows=chunk_rows)) == whole
    assert len(whole["arrival_ns"]) == requests
    assert whole["arrival_ns"] == sorted(whole["arrival_ns"])


@settings(max_examples=examples(20), deadline=None)
@given(duration_s=st.floats(0.01, 60), chunk_rows=st.integers(1, 300))
def test_a_duration_ends_where_it_says(duration_s, chunk_rows):
    found = [
        arrival
        for chunk in build(duration_s=duration_s, chunk_rows=chunk_rows).chunks()
        for arrival in chunk.arrival_ns.tolist()
    ]
    reference = columns_of(build(requests=3_000))["arrival_ns"]
    assert found == [arrival for arrival in reference if arrival < round(duration_s * 1e9)]


@pytest.mark.slow
def test_a_fresh_process_draws_the_same():
    code = (
        "import hashlib, sys\n"
        "sys.path[:0] = ['tests', 'tests/unit']\n"
        "import test_workload_synthetic as t\n"
        "print(t.digest(t.build('burstgpt-like', 'burstgpt-like', 'pool', requests=3000)))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": salt, "PATH": ""},
            cwd=__file__.rsplit("/tests/", 1)[0],
        ).stdout.strip()
        for salt in ("1", "2")
    ]
    here = digest(build("burstgpt-like", "burstgpt-like", "pool", requests=3000))
    assert printed == [here, here]


def test_closed_loop_has_its_slots_and_no_times():
    loop = ARRIVALS.get("closed-loop")(in_flight=8, requests_per_slot=5, think_s=0.25)
    workload = SyntheticWorkload(loop, LENGTHS.get("fixed")(10, 10), seed=1, chunk_rows=7)
    assert workload.closed_loop == ClosedLoop(8, 5, 250_000_000)
    assert workload.total == 40
    assert columns_of(workload)["arrival_ns"] == [0] * 40


@pytest.mark.parametrize(
    ("extent", "message"),
    [
        ({}, "got neither"),
        ({"requests": 5, "duration_s": 1.0}, "got both"),
        ({"requests": 0}, "requests: must be greater than 0"),
        ({"duration_s": -1.0}, "duration_s: must be greater than 0"),
        ({"requests": 1, "chunk_rows": 0}, "chunk_rows: must be greater than 0"),
    ],
)
def test_the_extent_must_be_given_once(extent, message):
    with pytest.raises(InputError, match=message):
        build(**extent)


def test_a_closed_loop_takes_no_extent():
    loop = ARRIVALS.get("closed-loop")(in_flight=8, requests_per_slot=5)
    with pytest.raises(InputError, match="= 40 requests; leave this out"):
        SyntheticWorkload(loop, LENGTHS.get("fixed")(10, 10), seed=1, requests=40)


def test_wrong_parameters_are_all_named():
    with pytest.raises(InputError) as caught:
        SyntheticWorkload(
            ARRIVALS.get("gamma")(rate_rps=-1.0, cv="2"),
            LENGTHS.get("fixed")(10, 10),
            seed=1,
            requests=5,
        )
    assert [fault.path for fault in caught.value.faults] == ["rate_rps", "cv"]
    with pytest.raises(InputError, match="99 exceeds prompt_max_tokens 10"):
        LENGTHS.get("uniform")(99, 10, 1, 2).sampler(0, None, "requests")
    with pytest.raises(InputError, match=r"expected 24 numbers.*\n.*must divide an hour"):
        ARRIVALS.get("burst")(1.0, by_hour=(1.0,), modulation_step_s=700.0).sampler(0)
    with pytest.raises(InputError, match="Did you mean 'mooncake'"):
        LENGTHS.get("trace")(path="x", format="moncake").sampler(0, None, "requests")
    with pytest.raises(TraceError, match="no such file"):
        LENGTHS.get("trace")(path="x", format="mooncake").sampler(0, None, "requests")


def test_ten_million_requests_stream():
    workload = build("gamma", requests=10_310_000)
    assert sum(len(chunk) for chunk in workload.chunks()) == 10_310_000
