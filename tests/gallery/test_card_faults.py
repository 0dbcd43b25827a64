"""A wrong card: all of it at once, with the lines."""

from pathlib import Path

import pytest

from llmsim.gallery.reading import GalleryError, find_exhibit, read_exhibit
from llmsim.gallery.running import seeds_of

BASE = """\
llmsim: 1
model: llama-3.1-8b
slo: {ttft_s: 1, tpot_s: 0.05}
traffic:
  arrivals: {kind: poisson, rate_rps: 4}
  lengths: {kind: fixed, prompt_tokens: 200, output_tokens: 20}
  requests: 60
fleet: {pools: {main: {gpu: h100-sxm, replicas: 2}}}
"""

CARD = """\
gallery: 1
title: Somebody's router
paper: {title: A paper, where: here, url: "https://example.org"}
mechanism: Sends requests somewhere.
plugs_into: [routing]
base: base.yaml
baseline: {label: in turn, set: {fleet.routing: round-robin}}
treatment: {label: to the least loaded, set: {fleet.routing: least-loaded}}
metric: ttft_p99_s
better: lower
of_knee: 0.8
bands:
  usual: {says: It helps., source: nowhere, band: [0.5, 4]}
nulls:
  alone:
    says: One replica.
    source: definition
    removes: a choice
    set: {fleet.pools.main.replicas: 1}
quality: none
"""


@pytest.fixture
def card(tmp_path):
    def write(old="", new="", base=BASE) -> Path:
        assert old in CARD
        (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
        (tmp_path / "card.yaml").write_text(CARD.replace(old, new, 1), encoding="utf-8")
        return tmp_path

    return write


def faults(folder) -> list[str]:
    with pytest.raises(GalleryError) as caught:
        read_exhibit(folder)
    return [str(fault) for fault in caught.value.faults]


def test_a_right_card_has_a_setting_per_regime(card):
    names = [each.name for each in read_exhibit(card()).settings()]
    assert names == ["usual", "alone"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metric: ttft_p99_s", "metric: ttft_p9_s", "card.yaml:9  metric: names no metric"),
        (
            "quality: none",
            "quality: none\nnote: x",
            "card.yaml:21  note: unknown key. It belongs under knobs",
        ),
        ("band: [0.5, 4]", "band: [4, 0.5]", "card.yaml:13  bands.usual.band: ends below"),
        ("band: [0.5, 4]", "band: [null, null]", "open at both ends"),
        ("of_knee: 0.8", "of_knee: 0.5", "a null needs 0.7"),
        ("    removes: a choice\n", "", "card.yaml:15  nulls.alone.removes: is missing"),
        ("base: base.yaml", "base: bse", "card.yaml:6  base: no shipped scenario is called 'bse'"),
        (
            "replicas: 1}",
            "replicas: none}",
            "card.yaml:19  nulls.alone.set.fleet.pools.main.replicas",
        ),
        ("least-loaded}", "last-loaded}", "card.yaml:8  treatment.set.fleet.routing: unknown"),
    ],
)
def test_a_fault_says_where_it_stands(card, old, new, said):
    (fault,) = faults(card(old, new))
    assert said in fault


def test_all_faults_come_at_once(card):
    folder = card("better: lower", "better: smaller\nknobs: {speed: {value: 1, origin: dream}}")
    assert len(faults(folder)) == 2


def test_a_closed_loop_has_no_knee(card):
    base = BASE.replace(
        "{kind: poisson, rate_rps: 4}",
        "{kind: closed-loop, in_flight: 4, requests_per_slot: 15}",
    ).replace("  requests: 60\n", "")
    (fault, *_) = faults(card(base=base))
    assert "has no rate" in fault


def test_a_null_says_how_loaded_it_is(card):
    """Without a share of the knee, only a rush or clients without a pause are load enough."""
    folder = card("of_knee: 0.8\n", "")
    (fault,) = faults(folder)
    assert "card.yaml:14  nulls.alone (baseline): a null needs a fleet at 0.7" in fault
    read_exhibit(card("of_knee: 0.8\n", "", BASE.replace("rate_rps: 4", "rate_rps: 60")))
    closed = BASE.replace("kind: poisson, rate_rps: 4", "kind: closed-loop, in_flight: 4, REST")
    closed = closed.replace("  requests: 60\n", "")
    read_exhibit(card("of_knee: 0.8\n", "", closed.replace("REST", "requests_per_slot: 15")))
    pausing = closed.replace("REST", "requests_per_slot: 15, think_s: 5")
    assert "a null needs" in faults(card("of_knee: 0.8\n", "", pausing))[0]
    extra = card("of_knee: 0.8\n", "")
    text = (
        (extra / "card.yaml")
        .read_text()
        .replace("removes: a choice", "removes: x\n    extra: true")
    )
    (extra / "card.yaml").write_text(text)
    assert "all extras" in faults(extra)[0]


def test_a_moved_band_is_tested_on_other_seeds(card):
    moved = "band: [0.5, 4], moved: {old: [2, 4], why: arithmetic}}"
    setting = read_exhibit(card("band: [0.5, 4]}", moved)).settings()[0]
    assert seeds_of(setting, 5) == (4, 5, 6, 7, 8)


def test_an_unknown_system_gets_the_nearest_name():
    with pytest.raises(GalleryError, match="Did you mean 'sarathi'"):
        find_exhibit("sarati")
