"""`MeasuredCost`: the step price from a kernel profile; where that is silent, the roofline's.

At construction every token count is tabulated and attention is looked up on its grids. The lines
of a decode batch are made when it first occurs, from the grids alone; a step then costs a few
list lookups.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmsim.core.errors import Fault, InputError
from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import ChunkSums, MixerPrice, price_mixer, scaled_mixer
from llmsim.costmodel.contract import Chunk, PriceLine
from llmsim.costmodel.explain import (
    OperatorRow,
    StepBreakdown,
    explain_parts,
    overhang_of,
    padded_sums,
)
from llmsim.costmodel.measured.attention import (
    STREAMS_NORM,
    MeasuredMixer,
    measure_mixer,
    windowed_decode,
)
from llmsim.costmodel.measured.lines import (
    Pieces,
    Tail,
    decode_lines,
    host_until,
    pieces_of,
    tail_of,
    uneven_piece,
    with_host,
)
from llmsim.costmodel.measured.means import Floats
from llmsim.costmodel.measured.operators import TokenOperators
from llmsim.costmodel.measured.profile import Profile
from llmsim.costmodel.measured.several import Profiles
from llmsim.costmodel.measured.tables import Context
from llmsim.costmodel.operators import OpTable, scaled
from llmsim.costmodel.roofline import RooflineCost, Sums
from llmsim.specs import UNSCALED, OperatorScales

Operators = Callable[[Floats], Iterator[OpTable]]

MIXED = ("card", "split", "fused_varlen", "streams")
_KEPT_PREFILLS = 65_536  # chunk compositions whose attention is remembered
_POINTS_PER_OCTAVE = 12  # contexts at which a decode curve is evaluated before it is simplified


class MeasuredCost:
    """Measured kernels over the operator list; implements `StepCost`.

    Parameters
    ----------
    base : RooflineCost
        Operator list, host terms and graph sizes; the price of what was not measured. Unscaled.
    profile : Profile
    context : Context
        Kernel and libraries to use; `strict` refuses whatever was not measured.
    mixed : str
        How attention of prefill and decode shares a step: ``card`` for what the profile's rows of
        mixed batches say, or the GPU card without such rows; ``split`` for two launches,
        ``fused_varlen`` for one, ``streams`` for two at a time.
    scales : OperatorScales
        Factors on whole operator families, on the GPU alone.
    others : mapping of str to Profile, optional
        Profiles of single operators, attention excepted.

    Raises
    ------
    InputError
        If `strict` is set and an operator has no rows; all of them are listed.
    """

    context_tile: int
    window_tokens: int
    prefill_ns: float = 0.0
    """Prefill attention of the step that `step_ns` priced last [ns]."""
    prefill_tokens: int = 0
    """New prompt tokens of that step [tokens]."""

    @property
    def uneven(self) -> bool:
        """Whether the profile says what a context costs that is longer than the others."""
        return bool(self._tails)

    def __init__(
        self,
        base: RooflineCost,
        profile: Profile,
        context: Context | None = None,
        mixed: str = "card",
        scales: OperatorScales = UNSCALED,
        others: Mapping[str, Profile] | None = None,
    ) -> None:
        self.base = base
        self.scales = scales
        self.profile = profile
        self.profiles = Profiles(profile, others or {})
        self.model, self.gpu, self.plan = base.model, base.gpu, base.plan
        self.context_tile = base.context_tile
        self.window_tokens = base.window_tokens
        self.mixed = mixed
        context = context or Context()
        self.operators = TokenOperators(
            self.profiles, base.model, base.gpu, base.plan, context, base.layer_tables
        )
        self._tabulate()
        limits = base.limits
        self._most = (limits.max_num_seqs, limits.max_model_len, limits.max_num_batched_tokens)
        self.mixers = self._measure(context)
        self._tails = _tails_of(self.mixers, scales.attention_decode)
        self._set_mixed()
        self._lines: dict[int, tuple[list[int], list[PriceLine]]] = {}
        self._attention: dict[int, tuple[Pieces, float, float]] = {}
        self._prefills: dict[tuple[int, Sums], float] = {}
        self.line_error = 0.0
        if context.strict and self.operators.missing:
            faults = [
                Fault("", name, "was not measured.") for name in sorted(self.operators.missing)
            ]
            raise InputError(f"profile '{self.profile.name}' with strict", faults)

    def _tabulate(self) -> None:
        base = self.base
        top = base.limits.max_num_batched_tokens + base.limits.max_num_seqs
        self._token_ns = _sum_ns(self.token_operators, base.padded(np.arange(top + 1.0)))
        self._head_ns = _sum_ns(self.head_tables, np.arange(base.limits.max_num_seqs + 1.0))

    def _measure(self, context: Context) -> tuple[MeasuredMixer, ...]:
        base = self.base
        tp, kv_dtype = base.plan.tp, base.kv_dtype
        found = []
        for layer in base.model.layers:
            for price in price_mixer(layer, base.gpu, tp, kv_dtype):
                price = scaled_mixer(price, self.scales, base.gpu)
                mixer = measure_mixer(layer, price, self.profile, context, tp, kv_dtype, self._most)
                if mixer.decode is None or mixer.prefill is None:
                    self.operators.missing.add(price.name)
                widths = self.operators.widths
                weight = float(price.layers)
                decode, prefill = mixer.decode, mixer.prefill
                widths.add("attention_decode", weight, decode.sigma if decode else None)
                widths.add("attention_prefill", weight, prefill.sigma if prefill else None)
                found.append(mixer)
        return tuple(found)

    def family_log_sd(self, prior: Mapping[str, float]) -> dict[str, float]:
        """Return how uncertain each operator family is, from the certainty of its answers.

        Parameters
        ----------
        prior : mapping of str to float
            Where the roofline answers: `llmsim.costmodel.uncertainty.family_log_sd`.
        """
        return self.operators.widths.by_family(prior)

    def token_operators(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield every operator that depends on the number of tokens alone, scaled."""
        base = self.base
        network = (table for table in base.token_operators(tokens) if table.dtype == "network")
        for table in self.operators.of_tokens(tokens, network):
            yield scaled(table, self.scales, base.gpu)

    def expert_tables(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield the routed experts of `token_operators`, scaled."""
        return (table for table in self.token_operators(tokens) if table.name == "experts")

    def head_tables(self, rows: Floats) -> Iterator[OpTable]:
        """Yield LM head, its gather and the sampler, scaled."""
        base = self.base
        network = (table for table in base.head_tables(rows) if table.dtype == "network")
        for table in self.operators.of_rows(rows, network):
            yield scaled(table, self.scales, base.gpu)

    def _set_mixed(self) -> None:
        """Reduce how decode attention is priced beside chunks to a factor and a fixed part."""
        fused = [mixer.price.mixed_fixed_ns == 0.0 for mixer in self.mixers]
        kind = self.mixed
        known = [mixer.kappa for mixer in self.mixers if mixer.kappa is not None]
        if kind == "card":
            kind = "fused_varlen" if known or any(fused) else "split"
        self._streams = kind == "streams"
        self._launch_ns = 0.0
        top = self._most[0]
        if kind != "fused_varlen":
            self._kappas = [1.0] * (top + 1)
            return
        guess = max((mixer.price.mixed_scale for mixer in self.mixers), default=1.0)
        tables = [kappa.table(top) for kappa in known] or [[guess] * (top + 1)]
        self._kappas = [max(column) for column in zip(*tables, strict=True)]
        self._launch_ns = sum(
            self.scales.attention_decode * NS_PER_S * mixer.decode.layers * mixer.decode.t0_s
            if mixer.decode is not None
            else mixer.price.decode_fixed_ns
            for mixer in self.mixers
        )

    def decode_line(self, batch: int, padded_tokens: int, overhang_tokens: int = 0) -> PriceLine:
        """Price a decode-only step; see `UnevenCost.decode_line`."""
        try:
            untils, lines = self._lines[batch]
        except KeyError:
            untils, lines = self._lines[batch] = self._build_lines(batch)
        if not overhang_tokens or not self._tails:
            return lines[bisect_left(untils, padded_tokens)]
        pieces, _, slope = self._attention[batch]
        gpu = uneven_piece(pieces, self._tails, batch, padded_tokens, overhang_tokens)
        host = self.base.host_ns(batch, batch, 0)
        return with_host(gpu, padded_tokens, host, (slope, self._edge(batch)))

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
        overhang_tokens: int = 0,
    ) -> int:
        """Price one step of any composition; see `UnevenCost.step_ns`."""
        self.prefill_ns = 0.0
        self.prefill_tokens = 0
        if not chunks and decode and logits == decode:
            line = self.decode_line(decode, padded_tokens, overhang_tokens)
            return max(1, rounded(line.at_ns(padded_tokens, windowed_tokens)))
        tokens = decode
        gpu_ns = 0.0
        if decode:
            gpu_ns = self._decode_ns(decode, padded_tokens, windowed_tokens, overhang_tokens)
        if chunks:
            sums = self.base.sums(chunks)
            new = sums[0]
            tokens += new
            key = (len(chunks), sums)
            prefill = self._prefills.get(key)
            if prefill is None:
                if len(self._prefills) >= _KEPT_PREFILLS:
                    self._prefills.clear()
                prefill = self._prefills[key] = self._prefill_ns(ChunkSums(*sums), len(chunks))
            self.prefill_ns, self.prefill_tokens = prefill, new
            gpu_ns = self._joined(prefill, gpu_ns, decode)
        priced, heads = self._token_ns, self._head_ns
        if tokens < len(priced) and logits < len(heads):
            gpu_ns += priced[tokens] + heads[logits]
        else:
            gpu_ns += self._at(priced, tokens, self.token_operators)
            gpu_ns += self._at(heads, logits, self.head_tables)
        added, beside = self.base.host_ns(tokens, decode, len(chunks))
        return max(1, rounded(added + max(gpu_ns, beside)))

    def attention_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int
    ) -> float:
        """Return the attention of a step; see `RooflineCost.attention_ns`."""
        time_ns = self._decode_ns(decode, padded_tokens, windowed_tokens) if decode else 0.0
        if not chunks:
            return time_ns
        prefill = self._prefill_ns(self.base.chunk_sums(chunks), len(chunks))
        return self._joined(prefill, time_ns, decode)

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return decode attention alone as a line; see `RooflineCost.attention_line`."""
        if batch not in self._attention:
            self._build_lines(batch)
        pieces, rest, slope = self._attention[batch]
        index = bisect_left(pieces.untils, padded_tokens)
        base = pieces.bases[index] - rest
        return PriceLine(base, pieces.slopes[index], slope, pieces.untils[index])

    def _joined(self, prefill_ns: float, decode_ns: float, decode: int) -> float:
        """Return the attention of a step that has both."""
        if not decode_ns:
            return prefill_ns
        if self._streams:
            longer, shorter = max(prefill_ns, decode_ns), min(prefill_ns, decode_ns)
            return float(longer * (1.0 + (shorter / longer) ** STREAMS_NORM) ** (1 / STREAMS_NORM))
        kappa = self._kappas[min(decode, len(self._kappas) - 1)]
        return prefill_ns + kappa * max(0.0, decode_ns - self._launch_ns)

    def _prefill_ns(self, sums: ChunkSums, chunks: int) -> float:
        total = 0.0
        for mixer in self.mixers:
            total += self._mixer_prefill_ns(mixer, sums, chunks)
        return total

    def _mixer_prefill_ns(self, mixer: MeasuredMixer, sums: ChunkSums, chunks: int) -> float:
        if mixer.prefill is None:
            return mixer.price.prefill_ns(sums)
        return self.scales.attention_prefill * mixer.prefill.at(sums, chunks)

    def _decode_ns(
        self, batch: int, padded_tokens: int, windowed_tokens: int, overhang_tokens: int = 0
    ) -> float:
        """Return decode attention alone: the straight piece less everything else [ns]."""
        if batch not in self._attention:
            self._build_lines(batch)
        pieces, rest, slope = self._attention[batch]
        if not overhang_tokens or not self._tails:
            return pieces.at(padded_tokens) - rest + slope * windowed_tokens
        base, rise, _ = uneven_piece(pieces, self._tails, batch, padded_tokens, overhang_tokens)
        return base + rise * padded_tokens - rest + slope * windowed_tokens

    @property
    def prefill_launch_ns(self) -> float:
        """Launches in the prefill attention of a step, during which little power is drawn [ns]."""
        scale = self.scales.attention_prefill
        return float(
            sum(
                mixer.price.prefill_fixed_ns
                if mixer.prefill is None
                else scale * mixer.prefill.fixed_ns
                for mixer in self.mixers
            )
        )

    def decode_terms(self, batch: int) -> list[tuple[MixerPrice, float, float, float]]:
        """Return decode attention beyond its launches as one straight line per mixer kind.

        Parameters
        ----------
        batch : int [requests]

        Returns
        -------
        list of (MixerPrice, float, float, float) [ns], [ns/token], [ns/token]
            At no context, per token of the padded sum and of the windowed sum. The line is the
            closest to the curve in relative terms: for energy, which is no better known.
        """
        found = []
        for mixer in self.mixers:
            price, slopes = mixer.price, mixer.price.decode_ns
            fixed, padded, windowed = slopes.request * batch, slopes.padded, slopes.windowed
            if mixer.decode is not None:
                top = self.window_tokens if windowed else self._most[1]
                tiles = 2.0 ** np.arange(math.log2(max(2.0, top / self.context_tile)) + 1.0)
                contexts = tiles * self.context_tile
                scale = self.scales.attention_decode
                values = scale * mixer.decode.at(batch, contexts)
                slope, level = np.polyfit(batch * contexts, values, 1, w=1.0 / values)
                launch = scale * NS_PER_S * mixer.decode.layers * mixer.decode.t0_s
                fixed = max(0.0, float(level) - launch)
                padded, windowed = (0.0, float(slope)) if windowed else (float(slope), 0.0)
            found.append((price, fixed, padded, windowed))
        return found

    def _rest_ns(self, batch: int) -> float:
        tokens = self._at(self._token_ns, batch, self.token_operators)
        return tokens + self._at(self._head_ns, batch, self.head_tables)

    def _build_lines(self, batch: int) -> tuple[list[int], list[PriceLine]]:
        """Return the straight pieces of one batch size; keep those of its GPU time."""
        sizes, values = self._curve(batch)
        scale, tile = self.scales.attention_decode, self.context_tile
        fixed, slope = windowed_decode(self.mixers, batch, tile, self.window_tokens, scale)
        pieces = pieces_of(sizes, values + fixed)
        self._attention[batch] = (pieces, self._rest_ns(batch), slope)
        self.line_error = max(self.line_error, pieces.error)
        added, beside = self.base.host_ns(batch, batch, 0)
        until = host_until(pieces, slope, self._edge(batch), beside)
        return decode_lines(pieces, added, beside, slope, until)

    def _edge(self, batch: int) -> int:
        """Return the clipped context sum of a batch whose contexts fill the window [tokens]."""
        return batch * (-(-self.window_tokens // self.context_tile) * self.context_tile)

    def _curve(self, batch: int) -> tuple[Floats, Floats]:
        """Return GPU time without windowed mixers over padded context sums, contexts equal."""
        tile = self.context_tile
        octaves = math.log2(max(2.0, self._most[1] / tile))
        count = max(2, math.ceil(octaves * _POINTS_PER_OCTAVE) + 1)
        contexts = np.unique(np.round(2.0 ** np.linspace(0.0, octaves, count))) * tile
        total = np.full(len(contexts), self._rest_ns(batch))
        for mixer in self.mixers:
            price = mixer.price
            if price.decode_ns.windowed:
                continue
            if mixer.decode is not None:
                total += self.scales.attention_decode * mixer.decode.at(batch, contexts)
            else:
                line = price.decode_ns
                total += price.decode_fixed_ns + batch * (line.request + line.padded * contexts)
        return batch * contexts, total

    def _at(self, table: list[float], size: int, operators: Operators) -> float:
        """Look a size up; one beyond the engine's limits is priced on the spot."""
        if size < len(table):
            return table[size]
        return _sum_ns(operators, np.array([float(size)]))[0]

    def padded(self, tokens: Floats) -> Floats:
        """Round token counts up to captured graph sizes; see `RooflineCost.padded`."""
        return self.base.padded(tokens)

    def host_ns(self, tokens: int, decode: int, chunks: int) -> tuple[float, float]:
        """Return host work that adds, and that runs beside; see `RooflineCost.host_ns`."""
        return self.base.host_ns(tokens, decode, chunks)

    def explain(
        self,
        chunks: Sequence[Chunk] = (),
        contexts: Sequence[int] = (),
        logits: int | None = None,
    ) -> StepBreakdown:
        """Split the price of a step by operator; see `RooflineCost.explain`.

        Notes
        -----
        Decode attention is shown without the error of its straight pieces, `line_error`.
        """
        rows = len(contexts) + len(chunks) if logits is None else logits
        return explain_parts(self, chunks, contexts, rows, self.attention_rows(chunks, contexts))

    def attention_rows(self, chunks: Sequence[Chunk], contexts: Sequence[int]) -> list[OperatorRow]:
        """Return a row per mixer and phase; beside chunks, decode shares what the join leaves."""
        batch = len(contexts)
        padded, windowed = padded_sums(contexts, self.context_tile, self.window_tokens)
        alone = [
            self._mixer_decode_ns(mixer, batch, padded, windowed, overhang_of(contexts))
            for mixer in self.mixers
            if contexts
        ]
        made = []
        share = 1.0
        if chunks:
            sums = self.base.chunk_sums(chunks)
            prefill = self._prefill_ns(sums, len(chunks))
            for mixer in self.mixers:
                ns = self._mixer_prefill_ns(mixer, sums, len(chunks))
                made.append(_attention_row(mixer, "prefill", ns, mixer.price.limits_ns(sums)))
            total = sum(alone)
            share = (self._joined(prefill, total, batch) - prefill) / total if total else 1.0
        for mixer, ns in zip(self.mixers, alone, strict=False):
            made.append(_attention_row(mixer, "decode", share * ns, (0.0, ns)))
        return made

    def _mixer_decode_ns(
        self, mixer: MeasuredMixer, batch: int, padded: int, windowed: int, overhang: int
    ) -> float:
        price = mixer.price
        size = windowed if price.decode_ns.windowed else padded
        if mixer.decode is not None:
            tail = 0.0
            if mixer.tail is not None:
                size -= overhang
                tail, _ = tail_of([mixer.tail], batch, size, overhang)
            context = np.array([max(size / batch, float(self.context_tile))])
            even = float(mixer.decode.at(batch, context)[0])
            return self.scales.attention_decode * (even + tail)
        slopes = price.decode_ns
        variable = slopes.padded * padded + slopes.windowed * windowed
        return price.decode_fixed_ns + slopes.request * batch + variable

    def warnings(self) -> tuple[str, ...]:
        """Return what was taken for granted, and what answered for the kernels."""
        lines = list(self.profiles.lines())
        if self.operators.missing:
            names = ", ".join(sorted(self.operators.missing))
            lines.append(f"{self.profile.name}: no rows, so roofline: {names}")
        return (*self.base.warnings(), *lines)


def _tails_of(mixers: Sequence[MeasuredMixer], scale: float) -> list[Tail]:
    """Return what the longest context adds; nothing where a kernel's tail is not known."""
    grow = [mixer for mixer in mixers if mixer.price.decode_ns.padded > 0.0]
    tails = [mixer.tail for mixer in grow if mixer.tail is not None]
    if len(tails) < len(grow):
        return []
    return [replace(tail, token_ns=scale * tail.token_ns) for tail in tails]


def _attention_row(
    mixer: MeasuredMixer, phase: str, ns: float, limits: tuple[float, float]
) -> OperatorRow:
    """Return the row of one mixer; the profile has no FLOPs of it, so none are shown."""
    bound = "compute" if limits[0] > limits[1] else "memory"
    price = mixer.price
    return OperatorRow(
        f"{price.name} {phase}", price.layers, 0.0, 0.0, ns / NS_PER_S, bound, price.dtype, 0.0
    )


def _sum_ns(operators: Operators, sizes: Floats) -> list[float]:
    total = np.zeros_like(sizes)
    for table in operators(sizes):
        total += table.count * table.seconds
    total[sizes == 0] = 0.0
    priced: list[float] = (total * NS_PER_S).tolist()
    return priced
