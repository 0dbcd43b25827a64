"""Replicas that come, go and fail, by the clock: what it takes and what it costs."""

import pytest

import llmsim as ls

WEIGHTS = 2 * 8_030_261_248  # bytes of llama-3.1-8b in bf16


def fleet(control, **changes):
    scenario = {
        "llmsim": 1,
        "name": "life",
        "model": "llama-3.1-8b",
        "traffic": {
            "arrivals": {"kind": "poisson", "rate_rps": 12},
            "lengths": {"kind": "fixed", "prompt_tokens": 500, "output_tokens": 500},
            "duration_s": 120,
        },
        "fleet": {
            "routing": "least-loaded",
            "boot": {"provision_s": 10, "weights_bytes_per_s": 1e9, "warm_up_s": 5, "detect_s": 2},
            "control": [{"kind": "schedule", **control}],
            "pools": {"main": {"replicas": 2, "spare_replicas": 1, "gpu": "h100-sxm"}},
        },
    }
    return ls.run(ls.Scenario.parse(scenario), changes)


def when(result, what):
    changes = result.changes
    return changes[changes["what"] == what]["time_s"].tolist()


def test_a_boot_takes_a_machine_its_weights_and_a_warm_up():
    ran = fleet({"add_at_s": [20]})
    assert when(ran, "booting") == [20]
    assert when(ran, "up") == pytest.approx([20 + 10 + WEIGHTS / 1e9 + 5], abs=0.01)
    third = ran.requests[ran.requests["replica"] == 2]
    assert len(third) > 50
    assert third["arrival_s"].min() > when(ran, "up")[0]
    end_s = ran.facts.end_ns / 1e9
    assert [r.billed_ns / 1e9 for r in ran.facts.replicas] == pytest.approx(
        [end_s, end_s, end_s - 30]
    )
    per_hour = next(iter(ran.facts.pools)).usd_per_gpu_hour
    assert ran.metrics["usd_per_hour"] == pytest.approx(per_hour * (3 - 30 / end_s))


def test_a_drained_replica_takes_no_more_and_goes_when_it_is_empty():
    ran = fleet({"drain_at_s": {"1": 60}})
    assert when(ran, "draining") == [60]
    (off_s,) = when(ran, "off")
    there = ran.requests[ran.requests["replica"] == 1]
    assert there["arrival_s"].max() < 60
    assert off_s == pytest.approx(there["end_s"].max())
    assert 60 < off_s < 75
    assert (ran.requests["outcome"] == "finished").all()


def test_a_drain_by_migration_is_over_at_once():
    moving = {"fleet.migration": {}, "fleet.control": [
        {"kind": "schedule", "drain_at_s": {"1": 60}},
        {"kind": "evacuate", "period_s": 0.05},
    ]}  # fmt: skip
    slow, fast = fleet({"drain_at_s": {"1": 60}}), fleet({}, **moving)
    assert when(fast, "off")[0] - 60 < 0.5 * (when(slow, "off")[0] - 60)
    assert len(when(fast, "migrated")) > 3


def test_a_failure_loses_kv_and_no_request():
    ran = fleet({"fail_at_s": {"1": 60}})
    rows = ran.requests
    assert (rows["outcome"] == "finished").all()
    hit = rows[rows["preemptions"] > 0]
    assert len(hit) > 3
    assert (hit["replica"] == 0).all()
    assert (hit["recomputed_tokens"] > 0).all()
    assert hit["itl_max_s"].min() > 2  # nobody knew of it before
    assert rows[rows["replica"] == 1]["end_s"].max() < 60.1


def test_what_comes_and_goes_must_say_at_what_price():
    with pytest.raises(ls.LlmsimError, match="boot: is missing"):
        fleet({}, **{"fleet.boot": None})


MOVES = {"fleet.migration": {}, "fleet.control": [{"kind": "llumnix"}]}


@pytest.mark.parametrize("changes", [{}, {"fleet.boot": {}}, MOVES])
def test_nobody_adds_spare_replicas_by_themselves(changes):
    """Without anything that adds them they are as if they were not there: they took requests."""
    asked = {"traffic.requests": 200} | changes
    plain = ls.run("quickstart", asked)
    spared = ls.run("quickstart", asked | {"fleet.pools.main.spare_replicas": 2})
    assert spared.facts.digest == plain.facts.digest
    assert set(spared.requests["replica"]) == {0, 1}


def test_spare_replicas_beside_tiers_change_no_store():
    asked = {"traffic.requests": 40}
    plain = ls.run("tiers", asked)
    spared = ls.run("tiers", asked | {"fleet.pools.main.spare_replicas": 1})
    assert spared.tiers.equals(plain.tiers)
