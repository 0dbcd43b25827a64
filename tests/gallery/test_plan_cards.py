"""Cards whose arms are plans: the cost of a fleet, not a run of one."""

import math
from pathlib import Path

import pytest

from llmsim.gallery.reading import GalleryError, read_exhibit
from llmsim.gallery.running import Order, replay, run_order

PLAN = """\
llmsim: 1
name: base
model: llama-3.1-8b
slo: {tpot_s: 0.05}
traffic:
  arrivals: {kind: poisson, rate_rps: 4}
  lengths: {kind: fixed, prompt_tokens: 200, output_tokens: 100}
  requests: 200
gpus: {h100-sxm: {usd_per_hour: 4}, l40s: {usd_per_hour: 1}}
search: {tp: [1]}
"""

CARD = """\
gallery: 1
title: Somebody's mixture
paper: {title: A paper, where: here, url: "https://example.org"}
mechanism: Buys several kinds.
plugs_into: [plan]
of: plan
base: base.yaml
baseline: {label: large ones, set: {gpus.l40s.available: 0}}
treatment: {label: any}
metric: naive_usd_per_hour
better: lower
bands:
  light: {says: Small ones are cheaper., source: prices, band: [3.9, 4.1]}
nulls:
  large-only:
    says: There are no small ones.
    source: definition
    removes: another kind
    set: {gpus.l40s.available: 0}
losses:
  none:
    says: Nothing will do.
    source: definition
    band: [0, 1]
    set: {gpus.h100-sxm.available: 0}
quality: none
"""


def written(folder: Path, old="", new="") -> Path:
    assert old in CARD
    (folder / "base.yaml").write_text(PLAN, encoding="utf-8")
    (folder / "card.yaml").write_text(CARD.replace(old, new, 1), encoding="utf-8")
    return folder


def test_an_arm_is_worth_what_its_fleet_costs(tmp_path):
    exhibit = read_exhibit(written(tmp_path))
    results = run_order(Order(exhibit, seeds=1, jobs=1))
    values = {
        name: {row.arm: row.value for row in settled.rows}
        for name, settled in results.settings.items()
    }
    assert values["light"] == {"baseline": 4.0, "treatment": 1.0}
    assert values["large-only"] == {"baseline": 4.0, "treatment": 4.0}
    # neither kind is left: no fleet, and so no cost
    assert math.isnan(values["none"]["baseline"])
    (setting,) = (each for each in exhibit.settings() if each.name == "light")
    settled = results.settings["light"]
    assert [replay(exhibit, setting, settled, row) for row in settled.rows] == [
        row.digest for row in settled.rows
    ]
    assert len({row.digest for row in settled.rows}) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("of: plan\n", "", "is 'naive_usd_per_hour': .* are of plans"),
        ("metric: naive_usd_per_hour", "metric: knee", "is 'knee': .* are all that a plan has"),
        ("quality: none", "of_knee: 0.8\nquality: none", "of_knee: is for simulated fleets"),
        ("gpus.l40s.available: 0}}\ntr", "gpus.l40z.available: 0}}\ntr", "unknown gpu 'l40z'"),
        ("base: base.yaml", "base: chatt", "no shipped plan is called 'chatt'"),
    ],
)
def test_a_fault_says_what_does_not_go_with_plans(tmp_path, old, new, said):
    with pytest.raises(GalleryError, match=said):
        read_exhibit(written(tmp_path, old, new))
