"""The prefix ledger against vLLM's free queue kept block by block, and the plain ledger.

`Blocks` is the slow truth: one object per block, a list as free queue, hashes as tuples of tokens.
It knows nothing of extents, trees or segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmsim import kvcache
from llmsim.core.errors import InvariantError
from llmsim.kvcache import NO_MATCH, CountLedger, PrefixLedger

Token = tuple[int, int]

OWNERS: dict[kvcache.Holder, Holder] = {}
"""Whose book it is that a ledger asks about."""


def identity(book: kvcache.Holder) -> tuple[tuple[tuple[int, int], ...], int] | None:
    holder = OWNERS[book]
    return (holder.prompt, holder.output_key) if holder.prompt else None


@dataclass(eq=False)
class Holder:
    """A request as the ledgers see one, and its tokens."""

    number: int
    prompt: tuple[tuple[int, int], ...] | None
    known: int
    computed: int = 0
    blocks: list[Block] = field(default_factory=list)
    book: kvcache.Holder = field(default_factory=kvcache.Holder)

    def __post_init__(self) -> None:
        OWNERS[self.book] = self

    @property
    def output_key(self) -> int:
        return -1 - self.number

    def tokens(self, count: int) -> list[Token]:
        """The first `count` tokens, generated ones after the prompt."""
        parts = self.prompt or ((10_000 + self.number, self.known),)
        found = [(key, at) for key, length in parts for at in range(length)]
        found += [(self.output_key, at) for at in range(max(0, count - len(found)))]
        return found[:count]


@dataclass(eq=False)
class Block:
    """One KV block."""

    name: int
    refs: int = 0
    content: tuple[Token, ...] | None = None


class Blocks:
    """Every block by itself, in the order in which vLLM would take them."""

    def __init__(self, blocks: int, size: int, unfilled_first: bool) -> None:
        self.size = size
        self.unfilled_first = unfilled_first
        self.queue = [Block(i) for i in range(blocks)]
        self.cached: dict[tuple[Token, ...], list[Block]] = {}
        self.evicted = 0

    def lookup(self, holder: Holder, known: int) -> list[Block]:
        """Longest run of leading cached blocks; of duplicates the one registered first."""
        tokens = holder.tokens(known)
        found: list[Block] = []
        while len(found) < (known - 1) // self.size:
            content = tuple(tokens[: (len(found) + 1) * self.size])
            if not self.cached.get(content):
                break
            found.append(self.cached[content][0])
        return found

    def hold(self, holder: Holder, found: list[Block]) -> None:
        for block in found:
            if not block.refs:
                self.queue.remove(block)
            block.refs += 1
        holder.blocks = list(found)

    def take(self, holder: Holder, count: int) -> None:
        for _ in range(count):
            block = self.queue.pop(0)
            if block.content is not None:
                self.cached[block.content].remove(block)
                block.content = None
                self.evicted += 1
            block.refs = 1
            holder.blocks.append(block)

    def register(self, holder: Holder, upto: int) -> None:
        tokens = holder.tokens(upto)
        for number in range(upto // self.size):
            block = holder.blocks[number]
            if block.content is None:
                block.content = tuple(tokens[: (number + 1) * self.size])
                self.cached.setdefault(block.content, []).append(block)

    def release(self, holder: Holder) -> None:
        front, tail = [], []
        for block in reversed(holder.blocks):
            block.refs -= 1
            if not block.refs:
                unfilled = block.content is None and self.unfilled_first
                (front if unfilled else tail).append(block)
        self.queue = front + self.queue + tail
        holder.blocks = []


class Twins(RuleBasedStateMachine):
    """The same admissions, steps and departures on both; they must agree on everything visible."""

    unfilled_first = True

    @initialize(blocks=st.integers(4, 16), size=st.sampled_from([1, 2, 4]))
    def start(self, blocks: int, size: int) -> None:
        self.size = size
        self.capacity = blocks
        self.truth = Blocks(blocks, size, self.unfilled_first)
        self.ledger = PrefixLedger(
            blocks,
            size,
            self.unfilled_first,
            identity,
            lambda book: OWNERS[book].computed,
        )
        self.here: list[Holder] = []
        self.gone: list[Holder] = []
        self.pins: list[Holder] = []
        self.count = 0

    def prompt(self, data: st.DataObject, most: int) -> tuple[tuple[int, int], ...] | None:
        kind = data.draw(st.integers(0, 5))
        if kind == 5:
            return None
        parts: list[tuple[int, int]] = []
        if kind == 4 and self.gone:  # goes on where somebody's text ended
            old = data.draw(st.sampled_from(self.gone))
            spoken = old.computed - sum(length for _, length in old.prompt or ())
            if old.prompt and spoken > 0:
                parts = [*old.prompt, (old.output_key, spoken)]
        if not parts:
            for level in range(data.draw(st.integers(1, 3))):
                key = 10 * level + data.draw(st.integers(0, 1))
                parts.append((key, data.draw(st.integers(1, 9))))
        kept, left = [], most
        for key, length in parts:
            if left:
                kept.append((key, min(length, left)))
                left -= kept[-1][1]
        return tuple(kept)

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        room = self.capacity * self.size
        prompt = self.prompt(data, room - 1)
        known = sum(p[1] for p in prompt) if prompt else data.draw(st.integers(1, room - 1))
        holder = Holder(self.count, prompt, known)
        self.count += 1
        self.enter(holder, known, data)

    def enter(self, holder: Holder, known: int, data: st.DataObject) -> None:
        found = self.truth.lookup(holder, known)
        match = self.ledger.match(holder.book, known)
        assert match.blocks == len(found)
        assert match.unreferenced == sum(not block.refs for block in found)
        hit = len(found) * self.size
        tokens = data.draw(st.integers(1, known - hit))
        blocks = -(-(hit + tokens) // self.size)
        if blocks - match.blocks + match.unreferenced > self.ledger.free:
            self.ledger.forget(holder.book)  # a failed admission touches nothing
            return
        self.truth.hold(holder, found)
        self.truth.take(holder, blocks - len(found))
        if hit:
            self.ledger.hold(holder.book, match)
        self.ledger.take(blocks - match.blocks)
        holder.known = known
        holder.computed = hit + tokens
        self.truth.register(holder, holder.computed)
        self.ledger.register(holder.book, holder.computed)
        self.here.append(holder)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.here))
        tokens = data.draw(st.integers(1, 2 * self.size))
        need = -(-(holder.computed + tokens) // self.size) - len(holder.blocks)
        if need > self.ledger.free:
            return
        self.truth.take(holder, need)
        self.ledger.take(need)
        holder.computed += tokens
        self.truth.register(holder, holder.computed)
        self.ledger.register(holder.book, holder.computed)

    @precondition(lambda self: self.here)
    @rule(data=st.data(), kept=st.booleans(), ended=st.booleans())
    def leave(self, data: st.DataObject, kept: bool, ended: bool) -> None:
        holder = data.draw(st.sampled_from(self.here))
        self.here.remove(holder)
        cached = holder.computed
        allocated = len(holder.blocks)
        self.truth.register(holder, cached)
        self.truth.release(holder)
        if ended:
            self.ledger.retire(holder.book, allocated, cached)
        else:  # its client went away
            self.ledger.release(holder.book, allocated, cached)
            self.ledger.forget(holder.book)
        if kept and holder.prompt:
            self.gone.append(holder)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def lose_and_come_back(self, data: st.DataObject) -> None:
        """Preempted: its blocks go, its text stays, and it may find part of its blocks again."""
        holder = data.draw(st.sampled_from(self.here))
        self.here.remove(holder)
        self.truth.release(holder)
        self.ledger.release(holder.book, -(-holder.computed // self.size), holder.computed)
        known = holder.computed + 1
        if known <= self.capacity * self.size and holder.prompt:
            self.enter(holder, known, data)
        else:
            self.ledger.forget(holder.book)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        """Another one holds the full blocks of a request too, whatever becomes of that."""
        holder = data.draw(st.sampled_from(self.here))
        if not holder.prompt:
            return
        full = holder.computed // self.size
        pin = Holder(self.count, holder.prompt, holder.known, full * self.size)
        self.count += 1
        self.truth.register(holder, holder.computed)
        pin.blocks = holder.blocks[:full]
        for block in pin.blocks:
            block.refs += 1
        self.ledger.fork(holder.book, pin.book, holder.computed)
        assert pin.book.held_blocks == full
        self.pins.append(pin)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        pin = data.draw(st.sampled_from(self.pins))
        self.pins.remove(pin)
        self.truth.release(pin)
        self.ledger.release(pin.book, pin.book.held_blocks, 0)
        self.ledger.forget(pin.book)

    @invariant()
    def same_free_blocks(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        assert self.ledger.free == len(self.truth.queue)
        assert self.ledger.evicted == self.truth.evicted

    @precondition(lambda self: hasattr(self, "ledger"))
    @rule(data=st.data())
    def look_without_touching(self, data: st.DataObject) -> None:
        prompt = self.prompt(data, 64)
        if prompt is None:
            return
        known = sum(length for _, length in prompt)
        before = (self.ledger.free, self.ledger.evicted)
        holder = Holder(self.count, prompt, known)
        self.count += 1
        match = self.ledger.match(holder.book, known)
        assert match.blocks == len(self.truth.lookup(holder, known))
        self.ledger.forget(holder.book)
        assert (self.ledger.free, self.ledger.evicted) == before

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for pin in self.pins:
            self.ledger.release(pin.book, pin.book.held_blocks, 0)
            self.ledger.forget(pin.book)
        for holder in self.here:
            self.ledger.release(holder.book, len(holder.blocks), holder.computed)
            self.ledger.forget(holder.book)
        self.ledger.check()
        assert self.ledger.free == self.capacity
        self.ledger.take(self.capacity)  # overwrites all that is cached
        assert not self.ledger.root.children, "nothing is kept about nothing"


class OldTwins(Twins):
    """The same with released blocks queued at the tail, filled or not (vLLM 0.20)."""

    unfilled_first = False


LAWS = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)
TestNewOrder = Twins.TestCase
TestNewOrder.settings = LAWS
TestOldOrder = OldTwins.TestCase
TestOldOrder.settings = LAWS


def prefix_ledger(blocks: int, size: int = 4, unfilled_first: bool = True) -> PrefixLedger:
    return PrefixLedger(
        blocks,
        size,
        unfilled_first,
        identity,
        lambda book: OWNERS[book].computed,
    )


def admit(ledger: PrefixLedger, holder: Holder) -> int:
    """Admit a whole prompt; return the tokens found."""
    match = ledger.match(holder.book, holder.known)
    if match.blocks:
        ledger.hold(holder.book, match)
    ledger.take(-(-holder.known // ledger.block_tokens) - match.blocks)
    holder.computed = holder.known
    ledger.register(holder.book, holder.known)
    return match.blocks * ledger.block_tokens


def leave(ledger: PrefixLedger, holder: Holder) -> None:
    ledger.release(holder.book, -(-holder.computed // ledger.block_tokens), holder.computed)
    ledger.forget(holder.book)


def test_a_prompt_is_found_but_for_its_last_token():
    ledger = prefix_ledger(20)
    leave(ledger, a := Holder(0, ((1, 12),), 12))
    assert a.book.held_blocks == 0  # nothing computed yet, nothing kept
    admit(ledger, a := Holder(0, ((1, 12),), 12))
    assert ledger.match(Holder(1, ((1, 12),), 12).book, 12).blocks == 2
    assert ledger.match(Holder(2, ((1, 12), (9, 1)), 13).book, 13).blocks == 3
    assert ledger.match(Holder(3, ((1, 7), (2, 5)), 12).book, 12).blocks == 1
    assert ledger.match(Holder(4, ((2, 12),), 12).book, 12) == NO_MATCH
    assert ledger.match(Holder(5, None, 12).book, 12) == NO_MATCH


def test_shared_blocks_stay_with_the_other_user():
    ledger = prefix_ledger(6)
    a, b = Holder(0, ((1, 8), (2, 4)), 12), Holder(1, ((1, 8), (3, 4)), 12)
    assert (admit(ledger, a), admit(ledger, b)) == (0, 8)
    assert ledger.free == 6 - 3 - 1
    leave(ledger, a)
    assert ledger.free == 3  # its own last block came back, the two shared ones did not
    leave(ledger, b)
    assert ledger.free == 6
    ledger.check()


def test_the_end_of_a_chain_is_overwritten_first():
    ledger = prefix_ledger(4)
    admit(ledger, a := Holder(0, ((1, 12), (9, 4)), 16))
    leave(ledger, a)
    ledger.take(1)
    assert ledger.evicted == 1
    assert ledger.match(Holder(1, ((1, 12), (8, 9)), 21).book, 21).blocks == 3
    ledger.take(2)
    assert ledger.match(Holder(2, ((1, 12), (8, 9)), 21).book, 21).blocks == 1


def test_a_hit_on_free_blocks_uses_them_up():
    ledger = prefix_ledger(4)
    admit(ledger, a := Holder(0, ((1, 8),), 8))
    leave(ledger, a)
    match = ledger.match((b := Holder(1, ((1, 8), (2, 1)), 9)).book, 9)
    assert (match.blocks, match.unreferenced, ledger.free) == (2, 2, 4)
    ledger.hold(b.book, match)
    assert ledger.free == 2


def test_a_writer_is_asked_for_what_it_has_written():
    """A request that decodes publishes its blocks when somebody looks for them."""
    ledger = prefix_ledger(10)
    admit(ledger, a := Holder(0, ((1, 4),), 4))
    edge = a.book.path[-1][0]
    edge.writer = a.book
    ledger.take(2)
    a.computed = 12
    turn = Holder(1, ((1, 4), (a.output_key, 8), (7, 3)), 15)
    assert ledger.match(turn.book, 15).blocks == 3
    longer = Holder(2, ((1, 4), (a.output_key, 12), (7, 3)), 19)
    match = ledger.match(longer.book, 19)
    assert match.blocks == 3
    assert ledger.may_grow(longer.book, match)
    assert not ledger.may_grow(turn.book, ledger.match(turn.book, 15))


def test_more_than_free_cannot_be_taken():
    ledger = prefix_ledger(3)
    with pytest.raises(InvariantError, match="more KV blocks taken"):
        ledger.take(4)


def test_check_finds_a_lost_block():
    ledger = prefix_ledger(3)
    admit(ledger, a := Holder(0, ((1, 8),), 8))
    leave(ledger, a)
    ledger.free -= 1
    with pytest.raises(InvariantError, match="free queue holds 3 blocks, ledger says 2 of 3"):
        ledger.check()


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 9))
def test_the_plain_ledger_counts(lengths, size):
    ledger = CountLedger(200, size)
    for number, length in enumerate(lengths):
        holder = Holder(number, ((1, length),), length)
        assert ledger.match(holder.book, length) == NO_MATCH
        ledger.take(-(-length // size))
        ledger.register(holder.book, length)
    assert ledger.free == 200 - sum(-(-length // size) for length in lengths)
    for number, length in enumerate(lengths):
        holder = Holder(number, ((1, length),), length)
        ledger.release(holder.book, -(-length // size), length)
        ledger.forget(holder.book)
    ledger.check()
    assert (ledger.free, ledger.evicted) == (200, 0)
    ledger.take(201)
    with pytest.raises(InvariantError, match="-1 free of 200"):
        ledger.check()


def test_a_run_that_grew_over_what_was_split_off_behind_it_is_given_back_once():
    """Blocks 0 to 4 split at 3, the back overwritten; the front grows, is forked, and split."""
    ledger = PrefixLedger(8, 4, True, identity, lambda book: 0)
    text = ((1, 40),)
    first, second, third = (Holder(number, text, 40) for number in range(3))
    other, pin = Holder(3, None, 20), Holder(4, text, 40)
    ledger.take(5)
    ledger.register(first.book, 20)
    ledger.retire(first.book, 5, 20)
    ledger.hold(second.book, ledger.match(second.book, 13))
    ledger.take(5)
    ledger.retire(other.book, 5, 0)
    ledger.take(1)
    ledger.register(second.book, 16)
    ledger.fork(second.book, pin.book, 16)
    ledger.hold(third.book, ledger.match(third.book, 9))
    ledger.check()
    for holder, blocks in ((second, 4), (third, 2), (pin, 4)):
        ledger.release(holder.book, blocks, 0)
        ledger.forget(holder.book)
        ledger.check()
    assert ledger.free == 8
