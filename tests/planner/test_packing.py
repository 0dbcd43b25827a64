"""The cheapest replicas: a published example, brute force, limits and what is said of them."""

from __future__ import annotations

import ast
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim import planner
from llmsim.core.errors import InputError
from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner.packing import ask_for_few
from llmsim.planner.program import build
from llmsim.planner.solving import Solver

SOLVERS = ("cbc", "highs")


def melange(columns=("a10g", "a100"), slices=1):
    """The example of Mélange's repository: four buckets, two GPU types, 30 requests/s."""
    shares = {"short-short": 0.2, "short-long": 0.1, "long-short": 0.5, "long-long": 0.2}
    buckets = tuple(Bucket(name, 30 * share) for name, share in shares.items())
    made = {
        "a10g": Column("a10g", "a10g", 1, 1.01, dict(zip(shares, (2, 1, 5, 2), strict=True))),
        "a100": Column("a100", "a100", 1, 3.67, dict(zip(shares, (20, 20, 40, 20), strict=True))),
    }
    return Problem(buckets, tuple(made[name] for name in columns), slices=slices)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("columns", "replicas", "usd_per_hour"),
    [
        (("a10g", "a100"), {"a10g": 3, "a100": 1}, 6.70),
        (("a100",), {"a100": 2}, 7.34),
        (("a10g",), {"a10g": 12}, 12.12),
    ],
)
def test_the_published_example(columns, replicas, usd_per_hour, solver):
    if solver == "highs":
        pytest.importorskip("highspy")
    packed = pack(melange(columns), Solver(solver))
    assert packed.replicas == replicas
    assert packed.usd_per_hour == pytest.approx(usd_per_hour)
    assert packed.proof.status == "optimal"
    assert packed.proof.bound == pytest.approx(usd_per_hour)


def test_all_traffic_is_served_and_no_replica_is_overloaded():
    problem = melange(slices=0)
    packed = pack(problem)
    for bucket in problem.buckets:
        served = [rate for (name, _), rate in packed.rate_rps.items() if name == bucket.name]
        assert math.fsum(served) == pytest.approx(bucket.rate_rps)
    load = packed.load(problem)
    assert all(load[name] <= number + 1e-6 for name, number in packed.replicas.items())


def brute_force(problem, most=10):
    """The cheapest counts under which slices can be dealt out, by trying all of both."""
    parts = [(b, b.rate_rps / problem.slices) for b in problem.buckets] * problem.slices
    best = math.inf
    for counts in itertools.product(range(most + 1), repeat=len(problem.columns)):
        cost = sum(
            n * column.usd_per_hour for n, column in zip(counts, problem.columns, strict=True)
        )
        if cost >= best - 1e-9:
            continue
        for dealt in itertools.product(range(len(counts)), repeat=len(parts)):
            load = [0.0] * len(counts)
            for (bucket, rate), where in zip(parts, dealt, strict=True):
                load[where] += rate * problem.columns[where].load_per_rps(bucket.name)
            if all(have <= n + 1e-9 for have, n in zip(load, counts, strict=True)):
                best = cost
                break
    return best


rates = st.sampled_from((0.5, 1.0, 2.0, 3.0, 4.5))


@st.composite
def problems(draw):
    names = ("x", "y")
    buckets = tuple(Bucket(name, draw(rates)) for name in names)
    columns = tuple(
        Column(f"c{k}", f"g{k}", 1, draw(st.sampled_from((1.0, 1.7, 2.9, 4.3))),
               {name: draw(st.sampled_from((0.0, 1.5, 2.0, 5.0))) for name in names})
        for k in range(2)
    )  # fmt: skip
    return Problem(buckets, columns, slices=2)


@settings(max_examples=12)
@given(problems())
def test_no_fleet_is_cheaper(problem):
    """Against every fleet of ten replicas of each kind, with every deal of the slices."""
    best = brute_force(problem)
    if best == math.inf:
        return  # a bucket that nobody serves
    assert pack(problem).usd_per_hour == pytest.approx(best)
    assert pack(replace(problem, slices=0)).usd_per_hour <= best + 1e-6


@settings(max_examples=6)
@given(problems())
def test_a_wish_more_never_costs_less(problem):
    problem = replace(problem, slices=0)
    able = [any(c.throughput_rps[b.name] for c in problem.columns) for b in problem.buckets]
    if not all(able):
        return
    cost = pack(problem).usd_per_hour
    fewer = replace(problem, usable_frac=0.7)
    spare = replace(problem, spare_replicas=1)
    double = replace(
        problem, buckets=tuple(replace(b, rate_rps=2 * b.rate_rps) for b in problem.buckets)
    )
    other = Column("more", "g9", 1, 2.0, {b.name: 1.0 for b in problem.buckets})
    more = replace(problem, columns=(*problem.columns, other))
    assert pack(fewer).usd_per_hour >= cost - 1e-6
    assert pack(spare).usd_per_hour > cost
    assert cost - 1e-6 <= pack(double).usd_per_hour <= 2 * cost + 1e-6
    assert pack(more).usd_per_hour <= cost + 1e-6


def one(rate=3.0, **changes):
    column = Column("h100", "h100-sxm", 2, 7.0, {"chat": 1.0}, **changes)
    return Problem((Bucket("chat", rate),), (column,))


def test_a_share_of_the_capacity_is_left_free():
    assert pack(replace(one(), usable_frac=0.5)).replicas == {"h100": 6}


def test_spare_replicas_come_on_top_of_each_kind_that_is_used():
    assert pack(replace(one(), spare_replicas=2)).replicas == {"h100": 5}
    # Two A100 carry 1 of the 1.125 they are asked for; 5 requests/s go to two A10G that carry 1.
    packed = pack(replace(melange(slices=0), spare_replicas=1))
    assert packed.replicas == {"a10g": 2, "a100": 2}


def test_large_pools_carry_more_than_their_parts():
    levels = (0.5, 1.4, 2.4, 3.5)
    assert pack(one(3.0, usable=levels)).replicas == {"h100": 4}
    assert pack(one(0.5, usable=levels)).replicas == {"h100": 1}
    with pytest.raises(InputError, match="largest pools of h100 do not carry"):
        pack(one(4.0, usable=levels))


def test_among_equally_cheap_fleets_the_smallest():
    small = Column("small", "s", 1, 1.0, {"chat": 1.0})
    large = Column("large", "l", 1, 4.0, {"chat": 4.0})
    assert pack(Problem((Bucket("chat", 4.0),), (small, large))).replicas == {"large": 1}


def test_a_fleet_that_runs_is_changed_only_for_a_gain():
    new = Column("new", "n", 1, 6.5, {"chat": 1.0})
    problem = replace(one(), columns=(*one().columns, new), current={"h100": 3})
    assert pack(problem).replicas == {"new": 3}
    assert pack(replace(problem, change_usd_per_hour=0.2)).replicas == {"new": 3}
    assert pack(replace(problem, change_usd_per_hour=0.3)).replicas == {"h100": 3}


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (replace(one(), available_gpus={"h100-sxm": 5}), "5 GPUs are too few: 6 would do"),
        # one A100 lacks 0.125 of 1.125, which is 5 long-short requests/s: what one A10G carries
        (
            replace(melange(slices=0), available_gpus={"a10g": 0, "a100": 1}),
            "available_gpus.a10g: 0 GPUs are too few: 1 would do, with the others as they are",
        ),
        (
            replace(melange(slices=0), available_gpus={"a10g": 0, "a100": 1}),
            "available_gpus.a100: 1 GPU is too few: 2 would do, with the others as they are",
        ),
        (replace(one(), budget_usd_per_hour=20), "20 USD/h is too little: 21.00 are needed"),
        (
            replace(one(), budget_usd_per_hour=20, available_gpus={"h100-sxm": 5}),
            "20 USD/h is too little: 21.00 are needed, with GPUs enough",
        ),
        (
            replace(one(), buckets=(Bucket("chat", 3.0), Bucket("long", 1.0))),
            "buckets.long: no configuration on h100-sxm meets the SLO",
        ),
    ],
)
def test_what_is_short_is_said(problem, said):
    with pytest.raises(InputError) as caught:
        pack(problem)
    assert said in str(caught.value)


def test_every_fault_of_a_problem_comes_at_once():
    column = Column("h 100", "h100", 0, -1.0, {"chatt": 1.0}, (2.0, 1.0))
    wrong = Problem(
        (Bucket("chat", 0.0),), (column,), 2.0, -1, {"h200": 3}, 0.0, -1, {"b": -2}, -1.0
    )
    with pytest.raises(InputError) as caught:
        pack(wrong)
    assert len(caught.value.faults) == 14
    assert "Did you mean 'chat'?" in str(caught.value)


LIMITS = {
    "serve": {},
    "serve_sliced": {"slices": 2},
    "load": {"usable_frac": 0.8},
    "spare": {"spare_replicas": 1},
    "available_gpus": {"available_gpus": {"h100-sxm": 8}},
    "budget": {"budget_usd_per_hour": 100.0},
    "change": {"current": {"big-h100": 1}, "change_usd_per_hour": 0.5},
    "levels": {},
    "beyond": {},
    "failed": {"failed": ({"big-h100": 1, "l40s": 1},)},
    "handed_over": {"port_usable_frac": 0.5},
    "nodes": {"spare_nodes": 1},
    "zones": {"zones": 3, "spare_replicas": 1},
    "few": {},
}


def small(name):
    usable = {"levels": (0.5, 1.4, 2.4), "beyond": (0.3,)}.get(name, ())
    more = 0.3 if name == "beyond" else 0.0
    columns = (
        Column("big-h100", "h100-sxm", 2, 7.0, {"chat": 2.0, "code": 1.0}, usable, more),
        Column("l40s", "l40s", 1, 1.5, {"chat": 0.5}, node_replicas=8),
    )
    if name == "handed_over":
        port = {"handed_bytes": {"chat": 1e8, "code": 4e8}, "port_bytes_per_s": 5e9}
        rates = {"chat": 4.0, "code": 2.0}
        columns += (
            Column("h100-prefill", "h100-sxm", 1, 3.5, rates, role="prefill", **port),
            Column("h100-decode", "h100-sxm", 1, 3.5, rates, role="decode", **port),
        )
    return Problem((Bucket("chat", 1.0), Bucket("code", 0.5)), columns, **LIMITS[name])


def written(name):
    """The program of `small`; for ``few`` that which breaks ties at 7 USD/h."""
    problem = small(name)
    made = build(problem)
    if name == "few":
        ask_for_few(problem, made, 7.0)
    return made.program


def kinds_in_the_sources():
    """What rows are called wherever a row is added to a program: ``program += ..., name``."""
    found = set()
    for path in Path(planner.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.AugAssign) or ast.unparse(node.target) != "program":
                continue
            assert isinstance(node.value, ast.Tuple), f"a row without a name: {ast.unparse(node)}"
            name = node.value.elts[1]
            if isinstance(name, ast.Call):
                assert ast.unparse(name.func) == "label"
                name = name.args[0]
            found.add(ast.literal_eval(name))
    return found - {"usd_per_hour"}  # the objective


@pytest.mark.parametrize("name", LIMITS)
def test_the_program_is_written_down(name, tmp_path, request):
    written(name).writeLP(str(tmp_path / "made.lp"))
    golden = request.path.parent / "golden" / f"{name}.lp"
    assert (tmp_path / "made.lp").read_text() == golden.read_text()


def test_no_kind_of_row_lacks_its_golden_program(request):
    texts = [path.read_text() for path in (request.path.parent / "golden").glob("*.lp")]
    made = [row.name for name in LIMITS for row in written(name).constraints()]
    rows = {name.split("(")[0] for name in made}
    assert rows == kinds_in_the_sources()
    for kind in rows:
        assert any(f"\n{kind}" in text for text in texts)


def test_what_was_too_little_is_not_bought_again():
    assert pack(one(1.5)).replicas == {"h100": 2}
    assert pack(replace(one(1.5), failed=({"h100": 2},))).replicas == {"h100": 3}
    two = replace(melange(slices=0), failed=(pack(melange(slices=0)).replicas,))
    found = pack(two)
    assert found.usd_per_hour > pack(melange(slices=0)).usd_per_hour
    with pytest.raises(InputError, match="there is no column 'h10'"):
        pack(replace(one(1.5), failed=({"h10": 2},)))


def test_among_equally_cheap_and_small_fleets_the_one_of_fewest_kinds():
    rates = {"chat": 1.0, "code": 1.0}
    columns = tuple(Column(name, "h100-sxm", 1, 4.0, rates) for name in ("a", "b", "c"))
    problem = Problem((Bucket("chat", 2.0), Bucket("code", 0.9)), columns)
    assert sorted(pack(problem).replicas.values()) == [3]
    # the same where each kind is best at something, as long as one kind alone costs no more
    skewed = (
        Column("a", "h100-sxm", 1, 4.0, {"chat": 1.0, "code": 1.01}),
        Column("b", "h100-sxm", 1, 4.0, {"chat": 1.01, "code": 1.0}),
    )
    assert len(pack(replace(problem, columns=skewed)).replicas) == 1
