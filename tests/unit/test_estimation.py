"""What is believed of output lengths: who draws what, and who is told."""

from __future__ import annotations

import numpy as np
import pytest

import llmsim as ls
from llmsim.core.rng import stream
from llmsim.policies import OUTPUT_LENGTH, RequestView
from llmsim.policies.estimation import TRUTH, BucketLength, ByPromptLength, MeanLength, NoisyLength
from llmsim.serving.beliefs import Beliefs
from llmsim.workload.chunk import RequestChunk
from llmsim.workload.programs import NextCall


def view(prompt: int = 100) -> RequestView:
    return RequestView(0, 0, prompt, -1, -1, 0, None)


def chunk(outputs: list[int]) -> RequestChunk:
    n = len(outputs)
    whole = np.zeros(n, dtype=np.int64)
    return RequestChunk(
        whole, np.full(n, 10, np.int32), np.array(outputs, np.int32), whole, whole,
        whole, np.zeros(n, np.bool_), whole - 1,
    )  # fmt: skip


def beliefs_of(kind: str, chunks: list[list[int]], seed: int = 3) -> list[int]:
    beliefs, told = Beliefs(OUTPUT_LENGTH.get(kind)(), seed), []
    for outputs in chunks:
        beliefs.read(chunk(outputs))
        for row in range(len(outputs)):
            one = view()
            beliefs.tell(one, row)
            told.append(one.believed_tokens)
    return told


def test_an_oracle_tells_the_truth():
    assert beliefs_of("oracle", [[5, 700], [1]]) == [5, 700, 1]


@pytest.mark.parametrize("kind", ["noisy", "bucket"])
def test_how_rows_are_chunked_does_not_matter(kind):
    outputs = np.random.default_rng(1).integers(1, 2000, 60).tolist()
    whole = beliefs_of(kind, [outputs])
    assert beliefs_of(kind, [outputs[:7], outputs[7:8], outputs[8:]]) == whole
    assert kind == "bucket" or beliefs_of(kind, [outputs], seed=4) != whole


def test_noise_is_lognormal_with_median_one():
    true = np.full(20_000, 10_000)
    factor = np.log(NoisyLength(0.5).foresee(true, true, np.random.default_rng(2)) / true)
    # four standard errors of the median, and of the standard deviation, of 20,000 normal numbers
    assert abs(np.median(factor)) < 4 * 1.2533 * 0.5 / 20_000**0.5
    assert factor.std() == pytest.approx(0.5, abs=4 * 0.5 / (2 * 20_000) ** 0.5)


def test_buckets():
    true = np.array([1, 256, 257, 1000])
    rng = np.random.default_rng(0)
    assert BucketLength().foresee(true, true, rng).tolist() == [256, 256, 512, 1024]
    wrong = BucketLength(accuracy_frac=0.0).foresee(true[2:], true[2:], rng)
    assert set(wrong - [512, 1024]) <= {-256, 256}
    many = np.full(5_000, 1000)
    right = BucketLength(accuracy_frac=0.7).foresee(many, many, rng) == 1024
    assert right.mean() == pytest.approx(0.7, abs=0.026)  # four standard errors


def test_a_mean_knows_what_has_ended():
    mean = MeanLength(first_tokens=50, window=2)
    assert mean.guess(view()) == 50
    for output in (10, 20, 40):
        mean.learn(view(), output)
    assert mean.guess(view()) == 30


def test_prompts_of_a_class():
    mean = ByPromptLength(first_tokens=50)
    mean.learn(view(100), 10)
    mean.learn(view(3000), 700)
    assert (mean.guess(view(70)), mean.guess(view(2100)), mean.guess(view(5))) == (10, 700, 355)


def test_calls_of_programs_have_streams_of_their_own():
    """What one call is believed to be does not depend on which others came before it."""

    def told(turns: list[int]) -> dict[int, int]:
        beliefs = Beliefs(NoisyLength(1.0), 3)
        found = {}
        for turn in turns:
            one = view()
            beliefs.tell_call(one, NextCall(0, 7, turn, 100, 5000, None, -1, 0))
            found[turn] = one.believed_tokens
        return found

    assert told([1, 2, 3]) == told([3, 1, 2])
    assert len(set(told([1, 2, 3]).values())) == 3


QUICK = {"traffic.requests": 150}


class Notes:
    """A router that writes down what it is told."""

    def __init__(self):
        self.told = []

    def start(self, fleet, rng):
        pass

    def choose(self, request):
        self.told.append(request.believed_tokens)
        return 0


@pytest.mark.parametrize("kind", OUTPUT_LENGTH.names())
def test_who_looks_at_the_truth_says_so(kind):
    """Outputs are 777 tokens; a router learns of that from a declared estimator, or never before
    the first one has ended."""
    lengths = {"kind": "fixed", "prompt_tokens": 10, "output_tokens": 777}
    arrivals = {"kind": "poisson", "rate_rps": 1000}
    changes = QUICK | {"traffic.lengths": lengths, "traffic.arrivals": arrivals}
    changes |= {"traffic.requests": 5, "estimators.output_length": kind}
    scenario = ls.Scenario.load("quickstart", changes)
    result = ls.run(scenario)
    declared = [text for text in result.warnings if f"estimators.output_length is {kind}" in text]
    information = OUTPUT_LENGTH.get(kind).information
    assert bool(declared) == (TRUTH in information)
    beliefs = Beliefs(OUTPUT_LENGTH.get(kind)(), 1)
    one, other = view(), view()
    beliefs.read(chunk([777]))
    beliefs.tell(one, 0)
    beliefs.read(chunk([31]))
    beliefs.tell(other, 0)
    if not declared:
        assert one.believed_tokens == other.believed_tokens
    else:
        assert one.believed_tokens != other.believed_tokens


def test_an_estimator_changes_nothing_for_who_does_not_ask():
    plain = ls.run("quickstart", QUICK)
    for kind in ("oracle", "noisy", "mean"):
        told = ls.run("quickstart", QUICK | {"estimators.output_length": kind})
        assert told.facts.digest == plain.facts.digest


def test_the_stream_is_its_own():
    drawn = NoisyLength(0.5).foresee(np.array([10]), np.array([1000]), stream(3, "output_length"))
    assert beliefs_of("noisy", [[1000]]) == drawn.tolist()
