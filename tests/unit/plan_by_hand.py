"""A plan with every part, made by hand: 2 x big and 3 x small for 10 USD/h."""

from llmsim.planner.plan import (
    Bound,
    Corrected,
    Current,
    Demanded,
    Evidence,
    Loser,
    Plan,
    Rival,
    Spending,
    Step,
    Used,
)


def used(name, gpu, replicas, usd_per_hour, utilisation_frac, bound, share):
    return Used(
        name=name,
        gpu=gpu,
        tp=2 if name == "big" else 1,
        pp=1,
        ep=1,
        quantisation="",
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        clock_frac=1.0,
        gpus=2 if name == "big" else 1,
        usd_per_hour=usd_per_hour,
        price_source="a <list> & more",
        replicas=replicas,
        spare_replicas=1,
        utilisation_frac=utilisation_frac,
        in_flight=20.0,
        bound=bound,
        share=share,
        spending=Spending(
            prompts={"compute": 0.9, "bandwidth": 0.1},
            outputs={"bandwidth": 0.8, "link": 0.2},
            whole={"compute": 0.5, "bandwidth": 0.3, "link": 0.2},
            kv_frac=0.75,
            seats_frac=0.25,
        ),
    )


def evidence(stage, replicas, usd_per_hour, attained, low, high, passed, lost=""):
    return Evidence(
        stage=stage,
        replicas=replicas,
        lost=lost,
        usd_per_hour=usd_per_hour,
        seeds=tuple(range(len(attained))),
        attained_frac=attained,
        overloaded=0,
        low_frac=low,
        high_frac=high,
        passed=passed,
        reason="as measured",
        digests=("x",) * len(attained),
        ttft_p99_s=0.4,
        tpot_p99_s=0.03,
    )


FLEET = {"big": 2, "small": 3}

PLAN = Plan(
    name="by-hand",
    model="llama-3.1-8b",
    outcome="good enough",
    reason="it passes, and is within 3% of the bound",
    rate_rps=20.0,
    dispersion=2.5,
    ranges=(
        Demanded("in1", 1, 15.0, 0.0),
        Demanded("in512", 512, 5.0, 0.01),
    ),
    slo={"ttft_s": 1.0, "tpot_s": 0.05, "attained_frac": 0.95},
    used=(
        used("big", "h100-sxm", 2, 3.5, 0.6, "tpot", {"in1": 0.2, "in512": 1.0}),
        used("small", "l40s", 3, 1.0, 0.8, "kv", {"in1": 0.8}),
    ),
    usd_per_hour=10.0,
    bound=Bound(9.5, 0.05, "loads add up"),
    waterfall=(
        Step("naive", "as if requests came evenly", 6.0, {"big": 1, "small": 2}, 0.1),
        Step("pooled", "room for bursts", 9.0, {"big": 2, "small": 2}, 0.1),
        Step("simulated", "put to the test", 10.0, FLEET, 3.0),
    ),
    rivals=(
        Rival("h100-sxm", 14.0, {"big": 4}, "", True),
        Rival("l40s", None, {}, "late for <long> prompts", False),
        Rival("a100-80gb-sxm", 16.0, {"middle": 8}, "", False),
    ),
    current=Current({"big": 5}, 20.0, 0.3, ""),
    evidence=(
        evidence("naive", {"big": 1, "small": 2}, 6.0, (0.7, 0.8, 0.75), 0.6, 0.85, False),
        evidence("confirm", FLEET, 10.0, (0.97, 0.98, 0.99), 0.96, 0.995, True),
    ),
    corrected=(Corrected("big", "mixed", 12.0, 10.8, 0.9, 7),),
    losers=(Loser("middle", "a100-80gb-sxm", 2.0, "dearer everywhere than <big>"),),
    notes=("Prices are those of a list.",),
    scenario_yaml="llmsim: 1\n",
    plan_yaml="name: by-hand\n",
    llmsim_version="0.1.0",
    seconds=12.0,
)
