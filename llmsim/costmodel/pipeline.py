"""`PipelineCost`: a micro-batch at each stage of a pipeline, and between them.

A stage is priced as a model of its own that has some of the layers, the first with the embedding,
the last with the final norm, the head and the sampler. No term says what a bubble costs: the
engine lets each station serve one micro-batch after another, and bubbles are when it waits.

References
----------
vLLM ``Worker.execute_model``: between stages each GPU sends a share of ``1 / tp`` of the hidden
states to its counterpart of the next stage, where they are gathered (``send_tensor_dict`` with an
``all_gather_group``); models that carry the residual apart send it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from llmsim.core.errors import InvariantError
from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.communication import Network, all_gather, send
from llmsim.costmodel.contract import FOREVER, Chunk, PriceLine
from llmsim.costmodel.explain import OperatorRow, StepBreakdown, explain_rows, table_row
from llmsim.costmodel.measured.cost import MeasuredCost
from llmsim.costmodel.operators import ACTIVATION_BYTES, Floats, OpTable
from llmsim.costmodel.roofline import RooflineCost
from llmsim.specs import GpuCard, HostTerms, LinkCard, ModelSpec, ParallelPlan

_ONE_TENSOR = frozenset(
    {"falcon", "gpt2", "gpt_bigcode", "gptj", "gpt_neox", "bloom", "opt", "mpt"}
)
"""Model types of vLLM whose stages send the hidden states alone; all others send a residual too."""


def tensors_sent(model: ModelSpec) -> int:
    """Return how many tensors of a token's hidden size go from stage to stage."""
    return 1 if model.model_type in _ONE_TENSOR else 2


class PipelineCost:
    """Prices micro-batches of a pipeline; implements `StagedCost`.

    Parameters
    ----------
    parts : sequence of RooflineCost or MeasuredCost (stages,)
        Each bound to its stage's part of the model, on that stage's GPUs, without the host's work
        per step.
    host : HostTerms
        What the scheduler does for a micro-batch, once, before its first stage.
    links : sequence of LinkCard (stages - 1,)
        From each GPU of a stage to the next.

    Attributes
    ----------
    stages : int
    names : tuple of str
        ``host``, ``stage 0``, ``link 0``, ``stage 1`` ...
    context_tile, window_tokens : int [tokens]
        As in `StepCost`.

    Notes
    -----
    Input preparation on the later stages' own hosts is taken to be hidden behind the stages before
    them; the way of the sampled tokens back to the scheduler takes no time.
    """

    context_tile: int
    window_tokens: int

    def __init__(
        self,
        parts: Sequence[RooflineCost | MeasuredCost],
        host: HostTerms,
        links: Sequence[LinkCard],
    ) -> None:
        self.parts = tuple(parts)
        self.stages = len(self.parts)
        self.links = tuple(links)
        first = self.parts[0]
        self.context_tile = first.context_tile
        self.window_tokens = max(part.window_tokens for part in self.parts)
        self._host_ns = host.base_s * NS_PER_S
        self._request_ns = host.per_request_s * NS_PER_S
        whole = first.base if isinstance(first, MeasuredCost) else first
        self._first = whole
        self._row_bytes = tensors_sent(whole.model) * ACTIVATION_BYTES * whole.model.hidden
        top = whole.limits.max_num_batched_tokens + whole.limits.max_num_seqs
        self._sizes = top
        sizes = np.arange(top + 1.0)
        self._hop_ns = [self._sent_ns(link, sizes) for link in self.links]
        names = ["host"]
        for stage in range(self.stages):
            names.append(f"stage {stage}")
            if stage < len(self.links):
                names.append(f"link {stage}")
        self.names = tuple(names)

    def hop_tables(self, link: LinkCard, tokens: Floats) -> Iterator[OpTable]:
        """Yield what moves activations from one stage to the next.

        Parameters
        ----------
        link : LinkCard
        tokens : ndarray of float (n,) [tokens]
        """
        tp = self._first.plan.tp
        size = self._row_bytes * tokens
        yield send("send to the next stage", 1, size / tp, link)
        network: Network | None = self._first.network
        if tp > 1 and network is not None:
            yield all_gather("gather in the next stage", 1, size, network, tp)

    def _sent_ns(self, link: LinkCard, tokens: Floats) -> list[int]:
        seconds = sum((table.seconds for table in self.hop_tables(link, tokens)), 0.0 * tokens)
        return [rounded(value) for value in (seconds * NS_PER_S).tolist()]

    def station_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> list[int]:
        """Price a micro-batch at each station; see `StagedCost.station_ns`."""
        tokens = decode
        for new, _ in chunks:
            tokens += new
        times = [self.host_ns(decode + len(chunks))]
        for number, part in enumerate(self.parts):
            if number:
                times.append(self.hop_ns(number - 1, tokens))
            times.append(part.step_ns(chunks, decode, padded_tokens, windowed_tokens, logits))
        return times

    def host_ns(self, requests: int) -> int:
        """Return what the scheduler's host does for a micro-batch of some requests [ns]."""
        return rounded(self._host_ns + self._request_ns * requests)

    def hop_ns(self, number: int, tokens: int) -> int:
        """Return what sending some tokens over a link takes, counted from the first one [ns]."""
        table = self._hop_ns[number]
        if tokens < len(table):
            return table[tokens]
        return self._sent_ns(self.links[number], np.array([float(tokens)]))[0]

    def station_lines(self, batch: int, padded_tokens: int) -> list[PriceLine]:
        """Price decodes alone at each station; see `StagedCost.station_lines`."""
        lines = [PriceLine(float(rounded(self._host_ns + self._request_ns * batch)), 0.0)]
        for number, part in enumerate(self.parts):
            if number:
                lines.append(PriceLine(float(self._hop_ns[number - 1][batch]), 0.0))
            lines.append(part.decode_line(batch, padded_tokens))
        return lines

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Return how long a micro-batch takes that is alone in the pipeline [ns]."""
        return sum(self.station_ns(chunks, decode, padded_tokens, windowed_tokens, logits))

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Price decodes that are alone in the pipeline; see `StepCost.decode_line`."""
        base = token = windowed = 0.0
        until = FOREVER
        for line in self.station_lines(batch, padded_tokens):
            base += line.base_ns
            token += line.per_token_ns
            windowed += line.per_windowed_ns
            until = min(until, line.until_tokens)
        return PriceLine(base, token, windowed, until)

    def explain(self, chunks: Sequence[Chunk] = (), contexts: Sequence[int] = ()) -> StepBreakdown:
        """Split the price of a micro-batch that is alone in the pipeline by operator.

        Parameters
        ----------
        chunks, contexts
            As for `RooflineCost.explain`.
        """
        logits = len(chunks) + len(contexts)
        rows: list[OperatorRow] = []
        tokens = 0
        for part in self.parts:
            own = part.explain(chunks, contexts, logits)
            tokens = own.tokens
            rows += own.rows
        sent = np.array([float(sum(new for new, _ in chunks) + len(contexts))])
        for link in self.links:
            rows += [table_row(table) for table in self.hop_tables(link, sent)]
        host = self._host_ns + self._request_ns * logits
        return explain_rows(rows, (host, 0.0), tokens)

    def warnings(self) -> tuple[str, ...]:
        """Return what was taken for granted, each once."""
        return tuple(dict.fromkeys(text for part in self.parts for text in part.warnings()))


def stage_links(
    plan: ParallelPlan,
    gpu: GpuCard,
    inside: LinkCard | None,
    between: LinkCard | None,
    given: LinkCard | None = None,
) -> tuple[LinkCard, ...]:
    """Return the link from each GPU of a stage to the next.

    Parameters
    ----------
    plan : ParallelPlan
    gpu : GpuCard
    inside, between : LinkCard or None
        Of a node, and between nodes: the latter where a stage ends with its node.
    given : LinkCard or None
        Between any two stages, in their place.
    """
    links = []
    for stage in range(1, plan.pp):
        leaves = stage * plan.stage_gpus % gpu.node_gpus == 0
        link = given or (between if leaves else inside)
        if link is None:
            raise InvariantError(f"no link before stage {stage}")
        links.append(link)
    return tuple(links)


def stage_host(host: HostTerms) -> HostTerms:
    """Return what of the host's work is done again for every stage: launches, and gaps between."""
    return replace(host, base_s=0.0, per_request_s=0.0)
