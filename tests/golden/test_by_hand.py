"""Tiny scenarios worked out by hand from vLLM's scheduling rules, one rule each.

Every step lasts 10 ms plus 1 ms per token it computes; a KV block holds 4 tokens. A call is
written ``time | rows | running waiting free | preempted``, a row ``name:new@before``. With
lookahead off, a request's token comes at the end of the step that reaches its last known token.
"""

from __future__ import annotations

import pytest
from replay import Ask, Bench, RecordedClock, WatchedBatching

from llmsim.policies.rules import ENGINE_RULES
from llmsim.serving.config import EngineConfig

MS = 1_000_000


def play(asks: list[Ask], *, order: str = "fcfs", fast_forward: bool = False, **given) -> Bench:
    settings = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 64,
        "block_tokens": 4,
        "kv_blocks": 10,
        "prefix_caching": False,
        "chunked_prefill": True,
        "chunk_limit_tokens": 0,
        "watermark_blocks": 0,
        "reserve_prompt": True,
        "lookahead": 0,
        "rules": ENGINE_RULES["vllm-0.33"],
    }
    config = EngineConfig(**(settings | given), fast_forward=fast_forward)
    bench = Bench(asks, config, RecordedClock(10 * MS, MS, 0), WatchedBatching(order=order))
    bench.run()
    bench.replica.ledger.check()
    assert bench.replica.ledger.free == config.kv_blocks
    return bench


def told(bench: Bench) -> list[str]:
    lines = []
    for call in bench.calls:
        rows = " ".join(f"{name}:{new}@{past}" for name, new, past in call.rows)
        lost = " ".join(call.preempted)
        counts = f"{call.running} {call.waiting} {call.free}"
        lines.append(f"{call.start_ns // MS} | {rows} | {counts} | {lost}")
    return lines


def written(story: str) -> list[str]:
    lines = [line.split("|") for line in story.strip().splitlines()]
    return [" | ".join(part.strip() for part in line) for line in lines]


def check(story: str, asks: list[Ask], ends: dict[str, tuple[int, int]], **given) -> Bench:
    """Compare calls, first tokens and ends [ms]; then all but the calls with merged steps."""
    bench = play(asks, **given)
    assert told(bench) == written(story)
    for merged in (bench, play(asks, fast_forward=True, **given)):
        got = {
            name: (outcome.first_token_ns / MS, outcome.finish_ns / MS)
            for name, outcome in merged.outcomes.items()
        }
        assert got == ends
        assert merged.replica.decisions == bench.replica.decisions
    return bench


def ask(name: str, prompt: int, output: int, at: int = 0, priority: int = 0, **segments) -> Ask:
    return Ask(name, at * MS, prompt, output, priority, tuple(segments.items()))


def test_prompts_are_chunked_under_the_budget():
    """Budget 8: a's prompt of 12 takes 8, then 4; what is left of the second step goes to b."""
    check(
        """
        0  | a:8@0        | 1 1 8 |
        18 | a:4@8 b:4@0  | 2 0 6 |
        36 | a:1@12 b:2@4 | 2 0 4 |
        49 | a:1@13 b:1@6 | 2 0 4 |
        """,
        [ask("a", 12, 3), ask("b", 6, 2)],
        {"a": (36, 61), "b": (49, 61)},
        max_num_batched_tokens=8,
    )


def test_whole_prompts_without_chunked_prefill():
    """b's 6 tokens do not fit the 3 that a leaves of the budget: it waits, uncut."""
    check(
        """
        0  | a:5@0 | 1 1 8 |
        15 | b:6@0 | 1 0 8 |
        """,
        [ask("a", 5, 1), ask("b", 6, 1)],
        {"a": (15, 15), "b": (31, 31)},
        max_num_batched_tokens=8,
        max_model_len=8,
        chunked_prefill=False,
    )


def test_a_preempted_request_computes_its_text_again():
    """Five blocks. At 36 ms a takes the last one and b, last in the running list, finds none.

    b loses its own two blocks and nobody is admitted in that call. Later calls would have to find
    three blocks for b's 7 + 2 known tokens, and find two, until a is done. The resumed step
    computes all nine tokens and gives the third one.
    """
    bench = check(
        """
        0  | a:7@0 b:7@0 | 2 0 1 |
        24 | a:1@7 b:1@7 | 2 0 1 |
        36 | a:1@8       | 1 1 2 | b
        47 | a:1@9       | 1 1 2 |
        58 | a:1@10      | 1 1 2 |
        69 | a:1@11      | 1 1 2 |
        80 | b:9@0       | 1 0 2 |
        99 | b:1@9       | 1 0 2 |
        """,
        [ask("a", 7, 6), ask("b", 7, 4)],
        {"a": (24, 80), "b": (24, 110)},
        kv_blocks=5,
    )
    assert bench.outcomes["b"].preemptions == 1
    assert bench.outcomes["b"].first_scheduled_ns == 0


def test_under_priority_the_least_urgent_loses_its_place_in_the_step():
    """At 47 ms `low` already has its token when `high` finds no block: `low` goes all the same.

    Its token leaves the step, its three blocks come back, `high` takes one of them.
    """
    bench = check(
        """
        0   | low:7@0          | 1 0 3 |
        17  | low:1@7 high:7@0 | 2 0 1 |
        35  | low:1@8 high:1@7 | 2 0 0 |
        47  | high:1@8         | 1 1 2 | low
        58  | high:1@9         | 1 1 2 |
        69  | high:1@10        | 1 1 2 |
        80  | high:1@11        | 1 1 2 |
        91  | low:10@0         | 1 0 2 |
        111 | low:1@10         | 1 0 2 |
        122 | low:1@11         | 1 0 2 |
        """,
        [ask("low", 7, 6, priority=1), ask("high", 7, 6, at=5)],
        {"high": (35, 91), "low": (17, 133)},
        kv_blocks=5,
        order="priority",
    )
    assert bench.outcomes["low"].preemptions == 1


def test_a_full_prefix_hit_computes_its_last_block_again():
    """At least one token is computed anew, and blocks are found whole: 4 of b's 8 tokens."""
    bench = check(
        """
        0   | a:8@0 | 1 0 8 |
        100 | b:4@4 | 1 0 8 |
        114 | b:1@8 | 1 0 7 |
        """,
        [ask("a", 8, 1, p=8), ask("b", 8, 2, at=100, p=8)],
        {"a": (18, 18), "b": (114, 125)},
        prefix_caching=True,
    )
    assert bench.outcomes["b"].cached_tokens == 4


def test_a_block_is_found_in_the_very_call_that_fills_it():
    """b follows a in the same call and shares two blocks that are only being computed."""
    bench = check(
        "0 | a:9@0 b:1@8 | 2 0 6 |",
        [ask("a", 9, 1, p=8, ua=1), ask("b", 9, 1, p=8, ub=1)],
        {"a": (20, 20), "b": (20, 20)},
        prefix_caching=True,
    )
    assert bench.outcomes["b"].cached_tokens == 8


def test_a_later_turn_finds_the_generated_text():
    """Turn two = prompt of 6 + 4 generated tokens + 2 new ones.

    The last generated token was never computed: 9 tokens, two full blocks, are found.
    """
    turn = Ask("b", 100 * MS, 12, 1, 0, (("p", 6), ("out.a", 4), ("q", 2)))
    bench = check(
        """
        0   | a:6@0 | 1 0 8 |
        16  | a:1@6 | 1 0 8 |
        27  | a:1@7 | 1 0 8 |
        38  | a:1@8 | 1 0 7 |
        100 | b:4@8 | 1 0 7 |
        """,
        [ask("a", 6, 4, p=6), turn],
        {"a": (16, 49), "b": (114, 114)},
        prefix_caching=True,
    )
    assert bench.outcomes["b"].cached_tokens == 8


@pytest.mark.parametrize(
    ("version", "row", "hit", "end"),
    [("vllm-0.33", "d:1@4", 4, 311), ("vllm-0.20", "d:5@0", 0, 315)],
)
def test_which_free_block_is_taken_first(version, row, hit, end):
    """Four blocks. x caches block 1; a fills 2 and leaves 3 half full; b needs two blocks.

    0.33 puts the half full block 3 in front of the queue: b takes 3 and 4, x's block survives.
    0.20 queues it behind block 1: b takes 4 and 1, and d finds nothing of x.
    """
    bench = check(
        f"""
        0   | x:4@0 | 1 0 3 |
        100 | a:5@0 | 1 0 2 |
        200 | b:8@0 | 1 0 2 |
        300 | {row} | 1 0 2 |
        """,
        [
            ask("x", 4, 1, x=4),
            ask("a", 5, 1, at=100, a=5),
            ask("b", 8, 1, at=200, b=8),
            ask("d", 5, 1, at=300, x=4, d=1),
        ],
        {"x": (14, 14), "a": (115, 115), "b": (218, 218), "d": (end, end)},
        prefix_caching=True,
        kv_blocks=4,
        rules=ENGINE_RULES[version],
    )
    assert bench.outcomes["d"].cached_tokens == hit


def test_the_watermark_holds_for_the_second_request_only():
    """b needs 4 blocks + 3 of watermark of the 6 and 5 that are free while a runs."""
    check(
        """
        0  | a:16@0 | 1 1 6 |
        26 | a:1@16 | 1 1 5 |
        37 | b:16@0 | 1 0 6 |
        63 | b:1@16 | 1 0 5 |
        """,
        [ask("a", 16, 2), ask("b", 16, 2)],
        {"a": (26, 37), "b": (63, 74)},
        watermark_blocks=3,
    )


def test_without_a_reservation_a_prompt_enters_by_its_first_chunk():
    """Five blocks, budget 8, two prompts of 12. The reservation keeps b out until a is done.

    Without it b's first chunk enters at 18 ms beside a's second one. At 36 ms its next chunk of 7
    needs two blocks, none is free, and b preempts itself in mid prefill. At 47 ms a chunk of 7
    would need two blocks again and one is free: it is not cut to fit.
    """
    asks = [ask("a", 12, 3), ask("b", 12, 1)]
    check(
        """
        0  | a:8@0  | 1 1 3 |
        18 | a:4@8  | 1 1 2 |
        32 | a:1@12 | 1 1 1 |
        43 | a:1@13 | 1 1 1 |
        54 | b:8@0  | 1 0 3 |
        72 | b:4@8  | 1 0 2 |
        """,
        asks,
        {"a": (32, 54), "b": (86, 86)},
        kv_blocks=5,
        max_num_batched_tokens=8,
    )
    bench = check(
        """
        0  | a:8@0       | 1 1 3 |
        18 | a:4@8 b:4@0 | 2 0 1 |
        36 | a:1@12      | 1 1 1 | b
        47 | a:1@13      | 1 1 1 |
        58 | b:8@0       | 1 0 3 |
        76 | b:4@8       | 1 0 2 |
        """,
        asks,
        {"a": (36, 58), "b": (90, 90)},
        kv_blocks=5,
        max_num_batched_tokens=8,
        reserve_prompt=False,
    )
    assert bench.outcomes["b"].preemptions == 1


@pytest.mark.parametrize("version", ["vllm-0.33", "vllm-0.20"])
def test_the_chunk_limit_and_the_lone_request(version):
    """At most 4 tokens of a prompt per step; 0.33 lifts the limit while a is all alone."""
    stories = {
        "vllm-0.33": (
            """
            0  | a:10@0      | 1 0 17 |
            20 | b:4@0 c:4@0 | 2 0 18 |
            38 | b:2@4 c:1@4 | 2 0 16 |
            """,
            {"a": (20, 20), "b": (51, 51), "c": (51, 51)},
        ),
        "vllm-0.20": (
            """
            0  | a:4@0             | 1 0 19 |
            14 | a:4@4 b:4@0 c:4@0 | 3 0 16 |
            36 | a:2@8 b:2@4 c:1@4 | 3 0 13 |
            """,
            {"a": (51, 51), "b": (51, 51), "c": (51, 51)},
        ),
    }
    story, ends = stories[version]
    check(
        story,
        [ask("a", 10, 1), ask("b", 6, 1, at=1), ask("c", 5, 1, at=1)],
        ends,
        kv_blocks=20,
        chunk_limit_tokens=4,
        rules=ENGINE_RULES[version],
    )


def test_two_batches_in_flight():
    """Lookahead 1: each call plans the step after the one that starts now.

    Two calls at the cold start. b comes at 5 ms, is seen at 14 ms and runs from 25 ms. At 25 ms
    a's last token is on the way: a is passed over but keeps its blocks until 40 ms. The call at
    40 ms has nothing to plan.
    """
    check(
        """
        0  | a:4@0       | 1 0 9 |
        0  | a:1@4       | 1 0 8 |
        14 | a:1@5 b:4@0 | 2 0 7 |
        25 | b:1@4       | 2 0 6 |
        40 |             | 1 0 8 |
        """,
        [ask("a", 4, 3), ask("b", 4, 2, at=5)],
        {"a": (14, 40), "b": (40, 51)},
        lookahead=1,
    )


def test_a_seat_limit_holds_the_queue():
    """One seat: b enters in the call in which a has left."""
    check(
        """
        0  | a:4@0 | 1 1 9 |
        14 | a:1@4 | 1 1 8 |
        25 | b:4@0 | 1 0 9 |
        """,
        [ask("a", 4, 2), ask("b", 4, 1)],
        {"a": (14, 25), "b": (39, 39)},
        max_num_seqs=1,
    )


def test_an_arrival_cuts_a_merged_stretch_at_the_end_of_its_step():
    """a decodes from 14 ms in steps of 11 ms; b comes at 30 ms and enters at 36 ms.

    An arrival at 36 ms sharp is seen by the call at 36 ms, one a nanosecond later by the next.
    """
    for at_ns, enters in ((30 * MS, 36), (36 * MS, 36), (36 * MS + 1, 47)):
        asks = [ask("a", 4, 9), Ask("b", at_ns, 4, 1)]
        for fast_forward in (False, True):
            bench = play(asks, fast_forward=fast_forward)
            assert bench.outcomes["b"].first_scheduled_ns == enters * MS
            assert bench.outcomes["a"].finish_ns == (14 + 8 * 11 + 4) * MS
            if fast_forward:
                assert bench.replica.events <= 6
