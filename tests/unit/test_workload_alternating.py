"""Phases that take turns: each has its rate and its lengths, and no draw depends on the scale."""

import numpy as np
import pytest

from llmsim.core.errors import InputError
from llmsim.workload import Alternating

SWING = {"rate_rps": [20.0, 5.0], "prompt_mean_tokens": [4000, 300]}
SWING |= {"output_mean_tokens": [50, 800], "phase_s": 60.0, "duration_s": 240.0}


def columns(seed=1, **given):
    parts = list(Alternating(**(SWING | given)).open(seed, None).chunks())
    names = ("arrival_ns", "prompt_tokens", "output_tokens")
    return (np.concatenate([getattr(part, name) for part in parts]) for name in names)


def test_phases_take_turns():
    at, prompt, output = columns()
    first = (at // 60_000_000_000) % 2 == 0
    assert (np.diff(at) >= 0).all()
    assert at[-1] < 240e9
    assert set(prompt[first].tolist()) == {4000}
    assert set(output[first].tolist()) == {50}
    assert set(prompt[~first].tolist()) == {300}
    # Poisson: 2,400 and 600 in two minutes each, within four standard deviations
    assert first.sum() == pytest.approx(2400, abs=4 * 49)
    assert (~first).sum() == pytest.approx(600, abs=4 * 24.5)
    gaps = np.diff(at[:1000]) / 1e9
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.12)


def test_lengths_have_their_mean_and_spread():
    _, prompt, output = columns(rate_rps=[200.0, 200.0], prompt_cv=0.5, output_cv=1.0)
    long = prompt[: len(prompt) // 4]
    assert long.mean() == pytest.approx(4000, rel=0.02)
    assert long.std() / long.mean() == pytest.approx(0.5, abs=0.03)
    assert output.min() >= 1


def test_the_scale_multiplies_rates_and_leaves_the_phases():
    at, prompt, _ = columns(rate_scale=3.0)
    first = (at // 60_000_000_000) % 2 == 0
    assert first.sum() == pytest.approx(7200, abs=4 * 85)
    assert set(prompt[first].tolist()) == {4000}


def test_every_pass_gives_the_same_and_every_seed_another():
    one, again, other = ([c.tolist() for c in columns(seed)] for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_lists_must_be_equally_long_and_positive():
    with pytest.raises(InputError, match=r"output_mean_tokens.*has 1 phases, rate_rps has 2"):
        columns(output_mean_tokens=[50])
    with pytest.raises(InputError, match=r"rate_rps.*must be greater than 0 in every phase"):
        columns(rate_rps=[20.0, 0.0])
