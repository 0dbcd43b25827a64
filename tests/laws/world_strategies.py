"""Hypothesis strategies for worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from abilities import foresees, keeps_memory, together
from drawing import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jobs import Job, Segments
from prices import COSTS, MS
from worlds import World, run

from llmsim.policies import ALLOCATION, BATCHING, PRECEDENCE, ROUTING
from llmsim.policies.tiering import EVICTION, LOADING
from llmsim.serving.meter import NEVER


def laws(count: int) -> settings:
    """Settings of a law: so many examples, however long each takes."""
    return settings(
        max_examples=examples(count),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


WHOLE_PROMPTS = {"prefill-first", "orca", "static-batching", "vllm-v0"}
"""Policies that admit no part of a prompt while others run."""

GRID_NS = 5 * MS
"""Arrivals often fall on this grid, as do the step ends of the round prices."""


@st.composite
def segments_of(draw: Any, prompt: int) -> Segments | None:
    """A prompt that may share its beginning, or all of itself, with others."""
    if draw(st.integers(0, 3)) == 0:
        return None
    parts: list[tuple[int, int]] = []
    left = prompt
    for level in range(draw(st.integers(1, 3))):
        length = draw(st.one_of(st.just(left), st.integers(1, left)))
        parts.append((10 * level + draw(st.integers(0, 1)), length))
        left -= length
        if not left:
            break
    if left:
        parts.append((draw(st.integers(100, 103)), left))
    return tuple(parts)


@st.composite
def jobs(draw: Any, count: int, longest: int, clients_leave: bool) -> tuple[Job, ...]:
    equal = draw(st.integers(0, 3)) == 3
    lengths = st.integers(1, longest)
    outputs = st.integers(1, 40)
    prompt, output = draw(lengths), draw(outputs)
    spacing = draw(st.sampled_from(["burst", "grid", "free"]))
    at = 0
    made = []
    for _ in range(count):
        if not equal:
            prompt, output = draw(lengths), draw(outputs)
        if spacing == "grid":
            at += GRID_NS * draw(st.integers(0, 4))
        elif spacing == "free":
            at += draw(st.integers(0, 60 * MS))
        elif draw(st.integers(0, 4)) == 0:
            at += draw(st.integers(1, 200)) * MS
        leaves = clients_leave and draw(st.integers(0, 3)) == 3
        made.append(
            Job(
                at,
                prompt,
                output,
                draw(segments_of(prompt)),
                draw(st.integers(0, 2)),
                draw(st.one_of(st.integers(0, 40).map(GRID_NS.__mul__), st.integers(0, 300 * MS)))
                if leaves
                else -1,
                clients_leave and draw(st.integers(0, 15)) == 15,
                draw(st.integers(-1, 2)),
            )
        )
    return tuple(made)


@st.composite
def tiers_below(draw: Any) -> dict[str, Any]:
    """One or two tiers, often too small and too slow."""
    count = draw(st.integers(1, 2))
    return {
        "tier_chunks": tuple(draw(st.sampled_from([1, 4, 30, 10**6])) for _ in range(count)),
        "chunk_blocks": draw(st.sampled_from([1, 1, 2, 5])),
        "tier_scopes": tuple(
            draw(st.sampled_from(["replica", "pool", "fleet"])) for _ in range(count)
        ),
        "tier_writes": (
            draw(st.sampled_from(["through", "finish"])),
            draw(st.sampled_from(["through", "evict"])),
        ),
        "tier_bytes_per_s": draw(st.sampled_from([1e12, 1e9, 1e8, 1e7])),
        "spare_chunks": draw(st.sampled_from([0, 0, 2])),
        "loading": draw(st.sampled_from(sorted(LOADING.names()))),
        "eviction": draw(st.sampled_from(sorted(EVICTION.names()))),
        "joins_loads": draw(st.booleans()),
        "by_layer": draw(st.booleans()),
        "swap_blocks": draw(st.sampled_from([0, 0, 5, 1000])),
        "keeps_copies": draw(st.booleans()),
        "swap_overlaps": draw(st.booleans()),
        "port_bytes_per_s": draw(st.sampled_from([1e12, 1e9, 3e7])),
        "message_ns": draw(st.sampled_from([0, 1, MS])),
    }


@st.composite
def shuffles(draw: Any) -> dict[str, Any]:
    """How requests are moved at random."""
    return {
        "shuffle_ns": draw(st.sampled_from([5 * MS, 13 * MS, 40 * MS])),
        "look_age_ns": draw(st.sampled_from([0, 0, 1, 20 * MS])),
        "copy_rounds": draw(st.integers(0, 3)),
        "last_blocks": draw(st.sampled_from([0, 1, 4, 100])),
        "handshake_ns": draw(st.sampled_from([1, MS, 30 * MS])),
        "moves_at_once": draw(st.sampled_from([1, 2, 5])),
        "drag_frac": draw(st.sampled_from([0.0, 0.01, 0.5])),
    }


STAGES = [(1.0,), (0.5, 0.5), (0.3, 0.7), (0.7, 0.3), (0.2, 0.3, 0.5), (0.25,) * 4]


@st.composite
def stopping(draw: Any) -> dict[str, Any]:
    """How steps are stopped, and for whom."""
    return {
        "stop_points": draw(st.sampled_from([0, 1, 2, 7, 160])),
        "precedence": draw(st.sampled_from(sorted(PRECEDENCE.names()))),
        "check_ns": draw(st.sampled_from([0, 0, 20_000])),
        "agree_ns": draw(st.sampled_from([0, 0, 1, MS])),
    }


@st.composite
def worlds(
    draw: Any,
    *,
    cost: str | None = None,
    batching: str | None = None,
    routing: str | None = None,
    lookahead: int | None = None,
    clients_leave: bool | None = None,
    turns: bool = False,
    handoff: bool | None = False,
    tiers: bool | None = False,
    moves: bool | None = False,
    lanes: bool = False,
    ranks: bool = False,
    stages: bool = False,
    stops: bool = False,
    most: int = 14,
) -> World:
    """A world in which much happens at once.

    `clients_leave`: whether they do; `turns`: whether later prompts may hold generated text;
    `handoff`: whether prompts are computed by some replicas for others, None for now and then;
    `tiers`: whether there are some below the GPUs, None for now and then;
    `moves`: whether decoding requests are moved between replicas at random, None likewise;
    `lanes`: whether these run on the same GPUs;
    `ranks`: whether a replica may have several attention ranks, `stages`: whether a pipeline's;
    `stops`: whether steps that compute prompts may be stopped inside;
    `most`: requests.
    """
    count = draw(st.integers(1, most))
    block = draw(st.sampled_from([16, 16, 4, 1]))
    longest = draw(st.sampled_from([20, 90, 300]))
    leave = draw(st.booleans()) if clients_leave is None else clients_leave
    made = draw(jobs(count, longest, leave))
    chunked = draw(st.integers(0, 3)) < 3
    forced = handoff is True or moves is True or tiers is True or lanes or stops
    kinds = [name for name in sorted(BATCHING.names()) if not (forced and together(name))]
    kinds = [name for name in kinds if not (lanes and keeps_memory(name))]
    kind = batching or draw(st.sampled_from(kinds))
    # who foresees what becomes of requests does so where they stay behind the door they came to
    stay = not (handoff is True or moves is True or stops or together(kind))
    routers = [name for name in sorted(ROUTING.names()) if stay or not foresees(name)]
    router = routing or draw(st.sampled_from(routers))
    apart = together(kind) or foresees(router)
    whole = not chunked or kind in WHOLE_PROMPTS
    most_blocks = max(-(-(job.prompt + job.output) // block) for job in made)
    watermark = draw(st.sampled_from([0, 0, 0, 1, 3]))
    closed = draw(st.integers(0, 4)) == 4
    shuffled = draw(st.integers(0, 3)) == 3 if moves is None else moves
    shuffled = shuffled and not apart
    replicas = draw(st.sampled_from([2, 2, 3] if shuffled else [1, 1, 1, 2, 4]))
    ports = st.sampled_from([1e12, 1e9, 2e8, 3e7])
    below = draw(st.integers(0, 2)) == 2 if tiers is None else tiers
    below = below and not together(kind)
    split = lanes or stops or (draw(st.integers(0, 2)) == 2 if handoff is None else handoff)
    shares = st.sampled_from([0.2, 0.5, 0.8, 1.0])
    split = lanes or (split and not apart)
    # by layer only where each step goes through all layers at once, in order
    whole_steps = not (lanes or stops or ranks or kind == "layered-prefill")
    caching = draw(st.booleans())
    paged = caching or split or below or shuffled or foresees(router)
    claims = "paged" if paged else draw(st.sampled_from(sorted(ALLOCATION.names())))
    ahead = st.integers(0, 1) if lookahead is None else st.just(lookahead)
    world = World(
        jobs=made,
        cost=cost or draw(st.sampled_from(sorted(COSTS))),
        max_num_seqs=draw(st.sampled_from([1, 2, 3, 8, 256])),
        budget_tokens=4096 if whole else draw(st.sampled_from([8, 32, 100, 4096])),
        max_model_len=4096,
        block_tokens=block,
        # at least one longest request fits; often not many more
        kv_blocks=most_blocks + watermark + draw(st.integers(0, 2 * most_blocks)),
        prefix_caching=caching,
        allocation=claims,
        chunked_prefill=chunked,
        chunk_limit_tokens=0 if whole else draw(st.sampled_from([0, 0, 5, 30])),
        watermark_blocks=watermark,
        reserve_prompt=draw(st.integers(0, 2)) < 2,
        lookahead=0 if lanes or stages else draw(ahead),
        rules=draw(st.sampled_from(["vllm-0.33", "vllm-0.20"])),
        batching=kind,
        order=draw(st.sampled_from(["fcfs", "priority", "deadline"])),
        routing=router,
        replicas=replicas,
        view_age_ns=draw(st.sampled_from([0, 0, 7 * MS, 1000 * MS])),
        timeout_ns=draw(st.sampled_from([0, 60 * MS, 333 * MS])) if leave else 0,
        slo_ns=draw(st.sampled_from([NEVER, 6 * MS, 3 * MS, 1])),
        in_flight=draw(st.integers(1, 4)) if closed else 0,
        think_ns=draw(st.sampled_from([0, 5 * MS])) if closed else 0,
        decoders=replicas if lanes else draw(st.sampled_from([1, 1, 2, 3])) if split else 0,
        port_bytes_per_s=draw(ports) if split or shuffled else 1e9,
        message_ns=draw(st.sampled_from([0, 1, MS])) if split or shuffled else 0,
        lanes=(draw(shares), draw(shares)) if lanes else None,
        sharing=draw(st.sampled_from(["fixed", "tpot-feedback"])) if lanes else "fixed",
        late_first_token=draw(st.booleans()) if split else False,
        sent_layers=draw(st.sampled_from([0, 0, 4 if stages else 1, 4]))
        if split and whole_steps
        else 0,
        refuses_kv=draw(st.booleans()) if split and whole_steps and not stages else False,
        **(draw(shuffles()) if shuffled else {}),
        ranks=draw(st.sampled_from([2, 2, 3, 4])) if ranks else 1,
        ranks_in_turn=draw(st.booleans()) if ranks else False,
        stages=draw(st.sampled_from(STAGES)) if stages else (),
        hop_ns=draw(st.sampled_from([0.0, 3_333.3, 300_000.0])) if stages else 0.0,
        stage_host_ns=draw(st.sampled_from([0, 0, 1, MS])) if stages else 0,
    )
    if stops:
        world = replace(world, prefix_caching=False, lookahead=0, **draw(stopping()))
    if below:
        world = replace(world, **draw(tiers_below()))
        if ranks and stages and foresees(router):  # what such ranks wait for is not copied
            world = replace(world, by_layer=False, swap_blocks=0)
    if turns and not closed:
        extra = draw(
            st.lists(
                st.tuples(st.integers(0, count - 1), st.integers(1, 40), st.integers(1, 20)),
                max_size=4,
            )
        )
        return with_turns(world, extra)
    return world


def with_turns(world: World, extra: Sequence[tuple[int, int, int]], gap_ns: int = MS) -> World:
    """Add second turns whose prompts hold the text that earlier requests generated.

    Each of `extra` is (parent, new prompt tokens, output). The turns come when everything else
    has ended, so a parent's text is known: the first run says how long it got.
    """
    first = run(world)
    jobs = list(world.jobs)
    at = first.facts.end_ns + gap_ns
    for parent, fresh, output in extra:
        base, row = world.jobs[parent], first.rows[parent]
        spoken = row.output_tokens
        segments = base.segments or ((10_000 + parent, base.prompt),)
        segments = (*segments, (-1 - parent, spoken), (20_000 + len(jobs), fresh))
        prompt = base.prompt + spoken + fresh
        jobs.append(Job(at, prompt, output, tuple(s for s in segments if s[1]), base.priority))
    longest = max(job.prompt + job.output for job in jobs)
    return replace(
        world,
        jobs=tuple(jobs),
        kv_blocks=max(world.kv_blocks, -(-longest // world.block_tokens) + world.watermark_blocks),
        budget_tokens=world.budget_tokens if world.chunked_prefill else 8192,
    )
