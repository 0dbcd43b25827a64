"""GPU cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.core.holding import held
from llmsim.core.paths import find_data, list_data
from llmsim.specs.cards import CardRow, Sheet, find_card, is_path, overlay, resolve_path
from llmsim.specs.kernels import (
    DecodeAttentionTerms,
    GemmTerms,
    KernelTerms,
    MoeTerms,
    PrefillAttentionTerms,
    SmoothRoofline,
)

_POWER_EXPONENT = 2.5
"""Power above idle over clock. Assumed: the middle of f^2 and f^3, as voltage follows the clock
(P ~ f V^2) over part of its range."""

BANDWIDTH_SM_FRAC = 0.4
"""Share of the SMs that draws the whole memory bandwidth. semi-PD (arXiv:2504.19867) finds that the
speed of decode saturates near 40% of an A100's SMs; assumed for chips whose card does not say."""


COMPUTE_DTYPES = ("bf16", "fp16", "fp8", "int8", "fp4", "int4", "fp32")


@dataclass(frozen=True, slots=True)
class PowerPoints:
    """Three-point power model of one GPU.

    Parameters
    ----------
    idle_w, memory_w, compute_w : float [W]
        Model loaded and clocks up; memory-bound kernels; compute-bound kernels.
    cap_w : float [W]
        Board power limit.
    """

    idle_w: float
    memory_w: float
    compute_w: float
    cap_w: float


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One GPU type.

    Parameters
    ----------
    name, vendor : str
    memory_bytes : float [bytes]
        Memory that the runtime reports as total, a little below the datasheet figure.
    memory_bytes_per_s : float [bytes/s]
        Datasheet bandwidth.
    cache_bytes : float [bytes]
        Last-level cache.
    sm_count : int
        Streaming multiprocessors or compute units.
    peak_flops_per_s : mapping of str to float [FLOP/s]
        Dense tensor peaks by dtype.
    link, host_link : str
        Names of the link cards to other GPUs of the node and to the host.
    node_gpus : int [GPUs]
        GPUs of a usual node.
    scale_out : str
        Name of the link card from each GPU to other nodes; empty for none.
    architecture : str
        What kernels are compiled for, such as ``sm90``; empty where nothing here depends on it.
    bandwidth_sm_frac : float
        Share of the SMs that draws the whole memory bandwidth.
    power : PowerPoints
    kernels : KernelTerms
    sources : tuple of CardRow
    """

    name: str
    vendor: str
    memory_bytes: float
    memory_bytes_per_s: float
    cache_bytes: float
    sm_count: int
    peak_flops_per_s: Mapping[str, float]
    link: str
    host_link: str
    node_gpus: int
    power: PowerPoints
    kernels: KernelTerms
    sources: tuple[CardRow, ...]
    scale_out: str = ""
    architecture: str = ""
    bandwidth_sm_frac: float = BANDWIDTH_SM_FRAC

    def bandwidth_frac(self, sm_frac: float) -> float:
        """Return the share of memory bandwidth that a share of the SMs can draw."""
        return min(1.0, sm_frac / self.bandwidth_sm_frac)

    def compute_dtype(self, dtype: str) -> str:
        """Return the type a product of this dtype runs in: 16 bits where the chip lacks it.

        Notes
        -----
        Engines then unpack the weights inside the kernel (weight-only, as Marlin does), which
        keeps their bytes and loses their FLOP/s.
        """
        return dtype if dtype in self.peak_flops_per_s else "bf16"

    def joined_by(self, scale_out: str | None, node_gpus: int | None = None) -> GpuCard:
        """Return the card with another link between nodes, and nodes of another size.

        Parameters
        ----------
        scale_out : str or None
            Link card; None for the card's own.
        node_gpus : int or None [GPUs]
            Of one node; None for the card's own.
        """
        found = self if scale_out is None else replace(self, scale_out=scale_out)
        return found if node_gpus is None else replace(found, node_gpus=node_gpus)

    def clocked(self, clock_frac: float = 1.0, power_cap_w: float | None = None) -> GpuCard:
        """Return the card at a lower clock, or under a power cap.

        Parameters
        ----------
        clock_frac : float
            SM clock over the full one, in (0, 1].
        power_cap_w : float [W], optional
            Compute-bound kernels clock down until they draw no more than this.

        Raises
        ------
        InputError
            If the clock is out of range, or no clock keeps the cap.

        Notes
        -----
        Compute time goes with ``1 / f``, memory time stays, and power above idle goes with
        ``f^2.5``; memory-bound kernels that exceed a cap are not slowed, they are refused. The
        peaks of a card stand for the full clock: what a kernel loses to its own throttling there
        is inside its measured efficiency.
        """
        power = self.power
        if not 0.0 < clock_frac <= 1.0:
            fault = Fault("", "clock_frac", f"is {clock_frac:g}, must be above 0 and at most 1.")
            raise InputError(self.name, [fault])
        if power_cap_w is not None:
            active = (power_cap_w - power.idle_w) / (power.compute_w - power.idle_w)
            clock_frac = min(clock_frac, max(active, 0.0) ** (1.0 / _POWER_EXPONENT))
        scale = clock_frac**_POWER_EXPONENT
        memory_w = power.idle_w + scale * (power.memory_w - power.idle_w)
        if power_cap_w is not None and not (clock_frac > 0.0 and memory_w <= power_cap_w):
            least = f"{self.name} draws {power.idle_w:g} W idle."
            message = f"{power_cap_w:g} W cannot be kept by clocking down."
            raise InputError(self.name, [Fault("", "power_cap_w", message, least)])
        if clock_frac == 1.0:
            return self
        compute_w = power.idle_w + scale * (power.compute_w - power.idle_w)
        peaks = {dtype: clock_frac * peak for dtype, peak in self.peak_flops_per_s.items()}
        drawn = replace(power, memory_w=memory_w, compute_w=compute_w)
        return replace(self, peak_flops_per_s=peaks, power=drawn)

    def shared(self, sm_frac: float) -> GpuCard:
        """Return the card as a process sees it that may use some of the SMs only.

        Parameters
        ----------
        sm_frac : float
            Share of the SMs, in (0, 1], as CUDA MPS sets it (active thread percentage).

        Raises
        ------
        InputError
            If the share is out of range.

        Notes
        -----
        Compute peaks go with the SMs. Bandwidth is whole from `bandwidth_sm_frac` of the SMs on
        and goes with them below.
        """
        if not 0.0 < sm_frac <= 1.0:
            fault = Fault("", "share_frac", f"is {sm_frac:g}, must be above 0 and at most 1.")
            raise InputError(self.name, [fault])
        if sm_frac == 1.0:
            return self
        return replace(
            self,
            sm_count=max(1, round(sm_frac * self.sm_count)),
            peak_flops_per_s={d: sm_frac * peak for d, peak in self.peak_flops_per_s.items()},
            memory_bytes_per_s=self.memory_bytes_per_s * self.bandwidth_frac(sm_frac),
        )

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every number."""
        return list(self.sources)


_GEMM_FAMILIES: Mapping[str, str] = {
    "bf16": "",
    "fp8": "",
    "fp8_block": "fp8",
    "int8": "",
    "fp4": "",
    "w8a16": "bf16",
    "w4a16": "bf16",
}
"""GEMM families, each with the one that stands in where no sheet has it."""

_MOE_FAMILIES: Mapping[str, str] = {
    "bf16": "",
    "fp8": "",
    "fp8_block": "fp8",
    "fp4": "",
    "w4a16": "",
    "mxfp4": "w4a16",
}
"""Expert families, likewise."""

_Family = TypeVar("_Family")

_OPTIONAL_MOE = ("mxfp4_fp8", "fp8_block_triton")
"""Families of experts that not every chip was measured with."""

_MXFP4_BY_MARLIN: Final = 0.88
"""Compute share that Marlin's experts reach with MXFP4 weights, over theirs with integers: 0.821
on L40S and 0.947 on RTX PRO 6000, where both were measured (``profiles/kernels``: ``mxfp4`` over
``w4a16``, zeros of padding counted), in the geometric mean. Assumed where Marlin was measured with
integers alone."""
_MARLIN_HIDDEN: Final = 256
_MARLIN_WIDTH: Final = 128
"""Multiples that vLLM pads MXFP4 experts to for Marlin (``Mxfp4MoEMethod.create_weights``)."""


class _Terms:
    """Reads kernel terms from the first of several sheets that has them; the prior has all."""

    def __init__(self, *sheets: Sheet) -> None:
        self.sheets = sheets

    def has(self, path: str) -> bool:
        return any(sheet.has(f"kernels.{path}.t0_s") for sheet in self.sheets)

    def number(self, path: str, unit: str, low: float = 0.0, high: float = float("inf")) -> float:
        where = f"kernels.{path}"
        sheet = next((one for one in self.sheets if one.has(where)), self.sheets[-1])
        return sheet.number(where, unit, low, high)

    def roofline(self, path: str) -> SmoothRoofline:
        return SmoothRoofline(
            t0_s=self.number(f"{path}.t0_s", "s"),
            compute_frac=self.number(f"{path}.compute_frac", "1", 0.01, 1.0),
            memory_frac=self.number(f"{path}.memory_frac", "1", 0.01, 1.0),
            norm=self.number(f"{path}.norm", "1", 1.0, 20.0),
        )

    def gemm(self, path: str) -> GemmTerms:
        return GemmTerms(
            self.roofline(path),
            loop_s=self.number(f"{path}.loop_s", "s"),
            half_tiles_per_sm=self.number(f"{path}.half_tiles_per_sm", "1"),
            quantise_s_per_byte=self.quantising(f"{path}.quantise_s_per_byte"),
        )

    def quantising(self, path: str) -> float:
        """Return the time of quantising; a family without it multiplies activations as they are."""
        stated = any(sheet.has(f"kernels.{path}") for sheet in self.sheets)
        return self.number(path, "s/byte") if stated else 0.0

    def decode(self, path: str) -> DecodeAttentionTerms:
        return DecodeAttentionTerms(self.roofline(path), self.number(f"{path}.wave_s", "s"))

    def moe(self, path: str) -> MoeTerms:
        return MoeTerms(
            self.roofline(path),
            expert_s=self.number(f"{path}.expert_s", "s"),
            half_rows=self.number(f"{path}.half_rows", "rows"),
            permute_s_per_byte=self.number(f"{path}.permute_s_per_byte", "s/byte"),
            hidden_multiple=self.multiple(f"{path}.hidden_multiple"),
            width_multiple=self.multiple(f"{path}.width_multiple"),
        )

    def multiple(self, path: str) -> int:
        """Return what a kernel pads to; one of which nothing is said takes any width."""
        stated = any(sheet.has(f"kernels.{path}") for sheet in self.sheets)
        return int(self.number(path, "elements", 1)) if stated else 1

    def families(
        self, group: str, names: Mapping[str, str], read: Callable[[str], _Family]
    ) -> dict[str, _Family]:
        """Return the families of a group; one that no sheet has is the one that stands in."""
        found: dict[str, _Family] = {}
        for family, stand_in in names.items():
            path = f"{group}.{family}"
            if stand_in and not self.has(path):
                found[family] = found[stand_in]
            else:
                found[family] = read(path)
        return found

    def experts(self) -> dict[str, MoeTerms]:
        found = self.families("moe", _MOE_FAMILIES, self.moe)
        for family in _OPTIONAL_MOE:
            if self.has(f"moe.{family}"):
                found[family] = self.moe(f"moe.{family}")
        marlin = found["w4a16"]
        share = _MXFP4_BY_MARLIN * marlin.roofline.compute_frac
        found["mxfp4_marlin"] = replace(
            marlin,
            roofline=replace(marlin.roofline, compute_frac=share),
            hidden_multiple=_MARLIN_HIDDEN,
            width_multiple=_MARLIN_WIDTH,
        )
        return found

    def kernels(self) -> KernelTerms:
        prefill = PrefillAttentionTerms(
            self.roofline("prefill_attention"),
            self.number("prefill_attention.half_tiles_per_sm", "1"),
        )
        return KernelTerms(
            gemm=self.families("gemm", _GEMM_FAMILIES, self.gemm),
            decode_attention={
                dtype: self.decode(f"decode_attention.{dtype}") for dtype in ("bf16", "fp8")
            },
            prefill_attention=prefill,
            latent_decode=self.roofline("latent_decode"),
            moe=self.experts(),
            recurrent=self.roofline("recurrent"),
            elementwise_floor_s=self.number("elementwise.floor_s", "s"),
            cache_bandwidth_ratio=self.number("elementwise.cache_bandwidth_ratio", "1", 1.0),
            sampler_t0_s=self.number("sampler.t0_s", "s"),
            sampler_passes=self.number("sampler.passes", "1", 1.0),
            mixed_launches=int(self.number("mixed_attention.launches", "1", 1, 2)),
            mixed_slope_per_group=self.number("mixed_attention.slope_per_group", "1"),
        )


def gpu_names() -> tuple[str, ...]:
    """Return the names of all GPU cards, sorted."""
    return tuple(sorted(list_data("profiles/gpus", ".yaml")))


@held
def load_gpu(name_or_path: str, near: Path | None = None, engine: str = "") -> GpuCard:
    """Read a GPU card.

    Parameters
    ----------
    name_or_path : str
        Card name or alias, or a path to a card file.
    near : Path or None
        Folder that a relative path starts from.
    engine : str
        Family of the serving engine, such as ``trtllm``: whose kernels to price where they were
        measured apart; empty for vLLM's.

    Raises
    ------
    CardError
        With every fault of the card, or the nearest name when there is none of this name.

    Notes
    -----
    Kernel terms that a card lacks are those fitted to public tables of this GPU
    (``profiles/kernels``), else of the card that its ``kernels_of`` names and of its fits, else
    of the prior for all GPUs. Terms of the engine itself, of this GPU or of that one, go first:
    two engines differ more than two chips of one architecture.
    """
    by_path = is_path(name_or_path)
    path = resolve_path(name_or_path, near) if by_path else find_card("profiles/gpus", name_or_path)
    sheet = Sheet(path)
    sheet.words("aliases")
    name, sibling = sheet.text("name", path.stem), _sibling(sheet)
    of_sibling = sibling.path.stem if sibling else ""
    own_engine = _fitted(f"{name}-{engine}")
    borrowed_engine = _fitted(f"{of_sibling}-{engine}")
    borrowed = [sibling, *_fitted(of_sibling)] if sibling else []
    prior = Sheet(find_card("profiles/kernels", "prior"))
    sheets = (sheet, *own_engine, *borrowed_engine, *_fitted(name), *borrowed, prior)
    card = GpuCard(
        name=name,
        vendor=sheet.text("vendor"),
        memory_bytes=sheet.number("memory_bytes", "bytes", 1),
        memory_bytes_per_s=sheet.number("memory_bytes_per_s", "bytes/s", 1),
        cache_bytes=sheet.number("cache_bytes", "bytes", 1),
        sm_count=int(sheet.number("sm_count", "1", 1)),
        peak_flops_per_s=_peaks(sheet),
        link=sheet.text("link"),
        host_link=sheet.text("host_link"),
        node_gpus=int(sheet.number("node_gpus", "1", 1)),
        power=PowerPoints(
            idle_w=sheet.number("power.idle_w", "W"),
            memory_w=sheet.number("power.memory_w", "W"),
            compute_w=sheet.number("power.compute_w", "W"),
            cap_w=sheet.number("power.cap_w", "W", 1),
        ),
        kernels=_Terms(*sheets).kernels(),
        sources=(),
        scale_out=sheet.text("scale_out", ""),
        architecture=sheet.text("architecture", ""),
        bandwidth_sm_frac=(
            sheet.number("bandwidth_sm_frac", "1", 0.01, 1.0)
            if sheet.has("bandwidth_sm_frac")
            else BANDWIDTH_SM_FRAC
        ),
    )
    rows = sheet.finish()
    for other in sheets[1:]:
        if other.faults:
            raise CardError(other.path.name, other.faults)
        own = other not in borrowed and other not in borrowed_engine
        rows = overlay(rows, other.rows if own else _as_of(of_sibling, other.rows))
    return replace(card, sources=rows)


def _as_of(name: str, rows: Iterable[CardRow]) -> list[CardRow]:
    """Return rows that say that they are those of a sibling."""
    note = f"as {name}, the nearest that was measured: "
    return [row._replace(source=note + row.source) for row in rows]


def _fitted(name: str) -> list[Sheet]:
    """Return the terms fitted to public kernel tables of a GPU, if there are any."""
    path = find_data("profiles", "kernels", f"{name}.yaml")
    return [Sheet(path)] if path is not None and name != "prior" else []


def _sibling(sheet: Sheet) -> Sheet | None:
    """Return the card of the measured GPU that ``kernels_of`` names, if it names one.

    A sibling reaches about the same shares of its peaks: one of the same architecture, or of the
    next where that has the same kind of memory.
    """
    name = sheet.text("kernels_of", "")
    if not name:
        return None
    try:
        return Sheet(find_card("profiles/gpus", name))
    except CardError as error:
        sheet.fault("kernels_of", error.faults[0].message, error.faults[0].hint)
        return None


def _peaks(sheet: Sheet) -> dict[str, float]:
    """Read the peaks the card has; bf16 is the one every card must state."""
    peaks = {"bf16": sheet.number("peak_flops_per_s.bf16", "FLOP/s", 1)}
    for dtype in COMPUTE_DTYPES[1:]:
        if sheet.has(f"peak_flops_per_s.{dtype}"):
            peaks[dtype] = sheet.number(f"peak_flops_per_s.{dtype}", "FLOP/s", 1)
    return peaks
