"""`RankedCost`: one step of several attention ranks that share their experts.

The ranks run in lock-step. Products, norms and the exchange of tokens are padded to the largest
rank, which is as long as the longest takes; the experts compute the tokens of all ranks, spread
evenly; attention is as long as that of the slowest rank. A rank without requests runs a dummy
batch of one token, or the others would wait for it for ever.

References
----------
vLLM's data-parallel engines: ``DPEngineCoreProc.run_busy_loop`` runs ``execute_dummy_batch`` where
a rank has nothing to do while others have; token counts and captured graphs are agreed upon, at
the largest, before each step (``vllm/v1/worker/dp_utils.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.contract import FOREVER, Chunk, PriceLine, RankLoad
from llmsim.costmodel.explain import OperatorRow, StepBreakdown, explain_rows, table_row
from llmsim.costmodel.measured.cost import MeasuredCost
from llmsim.costmodel.operators import Floats, OpTable
from llmsim.costmodel.roofline import RooflineCost

_TABLED_TOKENS = 65_536
"""Sums of tokens up to this are priced at construction [tokens]."""


class RankedCost:
    """Prices joint steps of the attention ranks of one replica; implements `JointCost`.

    Parameters
    ----------
    base : RooflineCost or MeasuredCost
        Of one rank, with the whole plan.

    Attributes
    ----------
    ranks : int
    context_tile, window_tokens : int [tokens]
        As in `StepCost`.
    """

    context_tile: int
    window_tokens: int

    def __init__(self, base: RooflineCost | MeasuredCost) -> None:
        self.base = base
        self._roofline = base.base if isinstance(base, MeasuredCost) else base
        self.ranks = self._roofline.plan.dp
        self.context_tile = base.context_tile
        self.window_tokens = base.window_tokens
        limits = self._roofline.limits
        top = limits.max_num_batched_tokens + limits.max_num_seqs
        sizes = np.arange(top + 1.0)
        self._token_ns = _sum_ns(self.rank_operators(self._roofline.padded(sizes)), sizes)
        rows = np.arange(limits.max_num_seqs + 1.0)
        self._head_ns = _sum_ns(base.head_tables(rows), rows)
        sums = np.arange(min(_TABLED_TOKENS, self.ranks * top) + 1.0)
        self._expert_ns = _sum_ns(self.expert_operators(sums), sums)
        self._beyond: dict[int, float] = {}
        self._edge_tokens = -(-self.window_tokens // self.context_tile) * self.context_tile

    # --- operators --------------------------------------------------------------------------

    def rank_operators(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield what depends on the tokens of the largest rank.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens]
            Graph padding included.
        """
        return (table for table in self.base.token_operators(tokens) if table.name != "experts")

    def expert_operators(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield what depends on the tokens of all ranks together.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens]
        """
        return self.base.expert_tables(tokens)

    def _rest_ns(self, most: int, total: int, rows: int) -> float:
        """Return everything but attention [ns]: tokens of the largest rank, of all, logit rows."""
        tokens, heads, experts = self._token_ns, self._head_ns, self._expert_ns
        if most < len(tokens) and rows < len(heads):
            time = tokens[most] + heads[rows]
        else:
            one = np.array([float(most)])
            time = _sum_ns(self.rank_operators(one), one)[0]
            one = np.array([float(rows)])
            time += _sum_ns(self.base.head_tables(one), one)[0]
        if total < len(experts):
            return time + experts[total]
        if total not in self._beyond:
            one = np.array([float(total)])
            self._beyond[total] = _sum_ns(self.expert_operators(one), one)[0]
        return time + self._beyond[total]

    # --- prices -----------------------------------------------------------------------------

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return decode attention of one rank as a line, valid from these sums on."""
        return self.base.attention_line(batch, padded_tokens)

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        """Price a joint step of decodes as a line in the sums of the slowest rank.

        Parameters
        ----------
        batches : sequence of int (ranks,) [requests]
            Decodes of each rank.
        lead : int
            The rank whose attention is the slowest.
        padded_tokens : int [tokens]
            Its padded context sum: selects the straight piece.
        """
        most = total = 0
        for batch in batches:  # not through a generator: asked whenever somebody joins or leaves
            total += batch or 1
            if batch > most:
                most = batch
        own = self.base.attention_line(batches[lead], padded_tokens)
        gpu_ns = own.base_ns + self._rest_ns(most, total, most)
        added, beside = self._roofline.host_ns(most, most, 0)
        until = self._knot(beside - gpu_ns, batches[lead], own)
        if padded_tokens <= until:
            return PriceLine(added + beside, 0.0, 0.0, min(until, own.until_tokens))
        return PriceLine(added + gpu_ns, own.per_token_ns, own.per_windowed_ns, own.until_tokens)

    def _knot(self, slack_ns: float, batch: int, line: PriceLine) -> int:
        """Return the largest padded sum whose attention fits into `slack_ns`, contexts equal."""
        if slack_ns < 0:
            return 0
        token, windowed = line.per_token_ns, line.per_windowed_ns
        edge = batch * self._edge_tokens
        if windowed and slack_ns <= (token + windowed) * edge:
            return int(slack_ns / (token + windowed))
        slack_ns -= windowed * edge
        return int(slack_ns / token) if token > 0.0 else FOREVER

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        """Price one joint step of any composition.

        Parameters
        ----------
        loads : sequence of RankLoad (ranks,)

        Returns
        -------
        int [ns]
            At least 1.
        """
        most = total = rows = chunks = requests = 0
        attention = 0.0
        before: RankLoad | None = None
        for load in loads:
            tokens = load.new + load.decode
            most = max(most, tokens)
            total += tokens or 1
            rows = max(rows, load.rows)
            chunks = max(chunks, len(load.chunks))
            requests = max(requests, load.decode + len(load.chunks))
            if load is before:  # ranks that are alike are often one and the same
                continue
            before = load
            own = self.base.attention_ns(load.chunks, load.decode, load.padded, load.windowed)
            attention = max(attention, own)
        gpu_ns = attention + self._rest_ns(most, total, rows)
        added, beside = self._roofline.host_ns(most, requests - chunks, chunks)
        return max(1, rounded(added + max(gpu_ns, beside)))

    def explain(self, ranks: Sequence[tuple[Sequence[Chunk], Sequence[int]]]) -> StepBreakdown:
        """Split the price of a joint step by operator.

        Parameters
        ----------
        ranks : sequence of (chunks, contexts) (ranks,) [tokens]
            Of each rank, as `RooflineCost.explain` takes them.

        Returns
        -------
        StepBreakdown
            Tokens are those of the largest rank.
        """
        sizes = [sum(new for new, _ in chunks) + len(contexts) for chunks, contexts in ranks]
        most, total = max(sizes), sum(max(1, size) for size in sizes)
        head = max(len(chunks) + len(contexts) for chunks, contexts in ranks)
        padded = self._roofline.padded(np.array([float(most)]))
        rows = [table_row(table) for table in self.rank_operators(padded)]
        rows += [table_row(table) for table in self.expert_operators(np.array([float(total)]))]
        if head:
            rows += [table_row(table) for table in self.base.head_tables(np.array([float(head)]))]
        slowest: list[OperatorRow] = []
        longest_s = 0.0
        for chunks, contexts in ranks:
            own = self.base.attention_rows(chunks, contexts)
            own_s = math.fsum([row.seconds for row in own])
            if own_s > longest_s:
                slowest, longest_s = own, own_s
        chunked = max(len(chunks) for chunks, _ in ranks)
        host = self._roofline.host_ns(most, head - chunked, chunked)
        return explain_rows([*rows, *slowest], host, int(padded[0]))


def _sum_ns(tables: Iterator[OpTable], sizes: Floats) -> list[float]:
    """Add up tables for all sizes; nothing costs nothing [ns]."""
    total = np.zeros_like(sizes)
    for table in tables:
        total += table.count * table.seconds
    total[sizes == 0] = 0.0
    priced: list[float] = (total * NS_PER_S).tolist()
    return priced
