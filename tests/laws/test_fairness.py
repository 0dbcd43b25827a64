"""Fair orders of service: timelines that can be checked on paper. A step lasts 5 ms."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from prices import MS
from worlds import Job, World, run

from llmsim.systems.dlpm import Dlpm
from llmsim.systems.sglang import Sglang
from llmsim.systems.vtc import Vtc

FLAT = {"cost": "flat", "block_tokens": 1, "kv_blocks": 4_000}


def job(at_ms, client, prompt=10, output=1, document=-1):
    segments = None if document < 0 else ((document, prompt - 1), (1_000 + at_ms, 1))
    return Job(at_ms * MS, prompt, output, segments, session=client)


def served(ran):
    """Return the requests in the order in which they were admitted."""
    rows = sorted(range(len(ran.rows)), key=lambda at: (ran.rows[at].scheduled_ns, at))
    return rows


def test_a_client_with_few_requests_does_not_wait_for_one_with_many():
    """One seat. The other begins at 12, what the first has been served, and both take turns."""
    jobs = (*(job(0, 0) for _ in range(4)), job(1, 1), job(1, 1))
    world = World(jobs, max_num_seqs=1, batching="vtc", **FLAT)
    assert served(run(world, policy=partial(Vtc, order="fcfs"))) == [0, 1, 2, 3, 4, 5]
    assert served(run(world, policy=Vtc)) == [0, 1, 4, 2, 5, 3]


def test_a_token_of_output_weighs_as_two_of_input():
    """Client 0's first answer has 20 tokens, 50 with its prompt: five prompts of client 1."""
    jobs = (job(0, 0, output=20), job(0, 0), *(job(0, 1) for _ in range(7)))
    world = World(jobs, max_num_seqs=1, batching="vtc", **FLAT)
    # a prompt with one token of output weighs 12: five make 60, more than 50
    assert served(run(world, policy=Vtc)) == [0, 2, 3, 4, 5, 6, 1, 7, 8]


def test_prompts_come_after_so_many_steps_of_decodes():
    jobs = (job(0, 0, output=30), job(1, 1), job(100, 1))
    policy = partial(Vtc, wait_steps=10, max_new_tokens=40)
    ran = run(World(jobs, batching="vtc", **FLAT), policy=policy)
    # ten decodes from 5 to 55; the third has waited long enough by 60 + 50 ms
    assert [row.scheduled_ns // MS for row in ran.rows] == [0, 55, 110]


def test_the_peak_of_the_batch_stays_in_memory():
    """Two of 10 tokens with 20 to come need 60 at their ends; the third waits for one of them."""
    jobs = tuple(job(0, 0, output=20) for _ in range(3))
    world = World(jobs, cost="flat", block_tokens=1, kv_blocks=70, batching="vtc")
    ran = run(world, policy=partial(Vtc, memory="peak", max_new_tokens=20))
    assert [row.scheduled_ns // MS for row in ran.rows] == [0, 0, 100]
    assert not any(row.preemptions for row in ran.rows)


DOCUMENTS = tuple(job(at, at % 2, prompt=81, output=2, document=at % 2) for at in range(12))
"""Two clients, each with a document of its own."""


def test_with_endless_credit_the_longest_prefix_goes_first():
    world = World(DOCUMENTS, max_num_seqs=2, prefix_caching=True, budget_tokens=100, **FLAT)
    local = partial(Sglang, order="lpm", longest_sorted=10**9)
    one = run(world, policy=local)
    other = run(world, policy=partial(Dlpm, quantum_tokens=10**9))
    assert one.decisions == other.decisions


def test_a_small_quantum_alternates_between_clients_and_a_large_one_stays_with_a_prefix():
    """A pool that holds one document: who is local stays with it."""
    small = {**FLAT, "kv_blocks": 100}
    jobs = tuple(job(0, at % 2, prompt=81, output=2, document=at % 2) for at in range(8))
    world = World(jobs, max_num_seqs=1, prefix_caching=True, **small)
    hits = {}
    for quantum in (10, 10**9):
        ran = run(world, policy=partial(Dlpm, quantum_tokens=quantum, max_new_tokens=2))
        hits[quantum] = sum(row.cached_tokens == 80 for row in ran.rows)
        turns = [at % 2 for at in served(ran)]
        changes = sum(a != b for a, b in pairwise(turns))
        assert changes == 1 if quantum > 10 else changes > 1
    assert hits[10] < hits[10**9] == 6
