"""Try ways to cut each kernel at large shapes: ``python -m llmsim_kernels.tune --out tune.csv``.

Prints, per kernel and shape, what the present table of tiles reaches of the device's ceiling and
what the best candidate would. Tables are changed by hand, since a tile must be right for shapes
that were not tried as well.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from llmsim_kernels.profiler.spec import Call, DeviceLostError, Effort

COLUMNS = ("kernel", "shape", "tiles", "present", "median_us", "achieved", "unit", "note")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to cut one kernel at one shape.

    Parameters
    ----------
    kernel, shape : str
    tiles : Any
        Of the kernel's own kind; None for what its table says.
    work : float [FLOP] or [bytes]
        Done or moved by one call, whichever binds.
    unit : str
        ``FLOP/s`` or ``B/s``.
    build : callable
        Makes the call from a bench and tiles.
    small : callable or None
        The same on few operands, which compiles the same code; None where `build` has few.
    """

    kernel: str
    shape: str
    tiles: Any
    work: float
    unit: str
    build: Callable[[Any, Any], Call]
    small: Callable[[Any, Any], Call] | None = None

    @property
    def code(self) -> str:
        """Return what decides the process that compiles this."""
        return f"{self.kernel} {self.tiles}"


def candidates(kernels: Sequence[str] = ()) -> Iterator[Candidate]:
    """Return every candidate, the present cut of each shape first.

    Parameters
    ----------
    kernels : sequence of str
        Take these alone; empty for all.
    """
    for made in (_varlen(), _experts(), _low_bit(), _decodes()):
        yield from (one for one in made if not kernels or one.kernel in kernels)


def _decodes() -> Iterator[Candidate]:
    from llmsim_kernels.ops.splits import Tiles

    cuts = [None, *(Tiles(16, *cut) for cut in product((64, 128), (1, 2, 4), (4,), (2, 3, 4)))]
    long = [Tiles(16, *cut) for cut in product((64, 128), (32, 64), (4, 8), (2, 3))]
    low = [*cuts, *(Tiles(16, 128, splits, 8, 2) for splits in (1, 2))]
    for batch, context, kind in (
        *((64, 8192, kind) for kind in ("same", "fp8", "int4")),
        (256, 1024, "same"),
        (1, 32768, "same"),
    ):
        item = {"same": 2.0, "fp8": 1.0, "int4": 0.5 + 4.0 / 128}[kind]
        work = 2.0 * 8 * 128 * batch * context * item
        builds = _decode_build(batch, context, kind), _decode_build(2, 4096, kind)
        for cut in [None, *long] if batch == 1 else low if kind == "int4" else cuts:
            yield Candidate("paged_decode", f"{kind} {batch}x{context}", cut, work, "B/s", *builds)


def _decode_build(batch: int, context: int, kind: str) -> Callable[[Any, Any], Call]:
    def build(bench: Any, tiles: Any) -> Call:
        from llmsim_kernels.ops.paged_decode import paged_decode
        from llmsim_kernels.profiler.triton_calls import page_table

        torch = bench.torch
        table, pages = page_table(bench, (context,) * batch, 16)
        contexts = torch.full((batch,), context, dtype=torch.int32, device=bench.device)
        q = bench.warm((batch, 32, 128), "bf16")
        options: dict[str, Any] = {"tiles": tiles}
        shape = (2, pages, 16, 8, 128)
        if kind == "int4":
            kv = bench.rotated((*shape[:-1], 64), "int8", 1)[0].view(torch.uint8)
            terms = bench.rotated((*shape[:-1], 2), "fp16", 1)[0]
            options |= {"k_terms": terms[0], "v_terms": terms[1]}
        else:
            kv = bench.rotated(shape, "bf16" if kind == "same" else "fp8", 1)[0]
        return Call([lambda: paged_decode(q, kv[0], kv[1], table, contexts, context, **options)])

    return build


def _varlen() -> Iterator[Candidate]:
    from llmsim_kernels.ops.varlen_attention import Tiles

    cuts = [None, *(Tiles(*cut) for cut in product((64, 128), (64, 128), (4, 8), (2, 3)))]
    for name, requests, pack in (
        ("prefill 8192", ((8192, 0),), True),
        ("prefill 8192 unpacked", ((8192, 0),), False),
        ("2048 + 64x8192", ((2048, 0), *((1, 8191),) * 64), True),
    ):
        work = sum(4.0 * 32 * 128 * new * (past + (new + 1) / 2) for new, past in requests)
        builds = _varlen_build(requests, pack), _varlen_build(requests[:2], pack)
        for cut in cuts:
            yield Candidate("varlen_attention", name, cut, work, "FLOP/s", *builds)


def _varlen_build(requests: tuple[tuple[int, int], ...], pack: bool) -> Callable[[Any, Any], Call]:
    def build(bench: Any, tiles: Any) -> Call:
        from llmsim_kernels.ops.varlen_attention import plan_batch, varlen_attention
        from llmsim_kernels.profiler.triton_calls import page_table

        torch = bench.torch
        lengths = tuple(new + past for new, past in requests)
        table, pages = page_table(bench, lengths, 16)
        contexts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
        news = [new for new, _ in requests]
        cut = plan_batch(news, 4, 128, bench.device, pack=pack, tiles=tiles)
        q = bench.warm((sum(news), 32, 128), "bf16")
        kv = bench.rotated((2, pages, 16, 8, 128), "bf16", 1)[0]
        return Call([lambda: varlen_attention(q, kv[0], kv[1], table, contexts, cut)])

    return build


def _experts() -> Iterator[Candidate]:
    from llmsim_kernels.ops.fused_moe import Tiles

    few = [Tiles(16, *cut) for cut in product((64, 128), (128,), (4,), (3, 4, 5))]
    some = [Tiles(64, *cut) for cut in product((128, 256), (64,), (4, 8), (3, 4))]
    some += [Tiles(32, 128, 64, 4, 4), Tiles(64, 128, 128, 8, 3)]
    many = [Tiles(128, *cut) for cut in product((128, 256), (64,), (8,), (3, 4))]
    many += [Tiles(64, 256, 64, 8, 4), Tiles(128, 128, 128, 8, 3), Tiles(64, 128, 64, 4, 4)]
    for experts, topk, hidden, inter, tokens, cuts in (
        (128, 8, 2048, 768, 32, few),
        (128, 8, 2048, 768, 2048, some),
        (128, 8, 2048, 768, 8192, [*some, *many]),
        (8, 2, 4096, 14336, 32, few),
        (8, 2, 4096, 14336, 8192, many),
    ):
        hit = experts * (1.0 - (1.0 - topk / experts) ** tokens)
        moved = 6.0 * hidden * inter * hit
        flops = 6.0 * hidden * inter * tokens * topk
        compute = flops / 8e14 > moved / 3e12
        work, unit = (flops, "FLOP/s") if compute else (moved, "B/s")
        build = _experts_build(experts, topk, hidden, inter, tokens)
        small = _experts_build(topk, topk, 512, 512, tokens)
        for cut in [None, *cuts]:
            shape = f"{topk} of {experts}, {hidden}x{inter}, {tokens}"
            yield Candidate("fused_moe", shape, cut, work, unit, build, small)


def _experts_build(
    experts: int, topk: int, hidden: int, inter: int, tokens: int
) -> Callable[[Any, Any], Call]:
    def build(bench: Any, tiles: Any) -> Call:
        from llmsim_kernels.ops.fused_moe import fused_moe
        from llmsim_kernels.profiler.blocks.moe import routing

        torch = bench.torch
        up = bench.rotated((experts, 2 * inter, hidden), "bf16", 1)[0]
        down = bench.rotated((experts, hidden, inter), "bf16", 1)[0]
        x = bench.warm((tokens, hidden), "bf16")
        shares = torch.full((tokens, topk), 1.0 / topk, dtype=torch.float32, device=bench.device)
        ids = routing(bench, experts, topk, tokens, 0.0).to(torch.int32)
        return Call([lambda: fused_moe(x, up, down, shares, ids, tiles)])

    return build


def _low_bit() -> Iterator[Candidate]:
    from llmsim_kernels.ops.w4a16_gemm import Tiles

    n, k = 14336, 4096
    few = [Tiles(16, *cut, 4, 4) for cut in product((64, 128), (64, 128), (1, 2, 4))]
    few += [Tiles(16, 64, 128, splits, 4, stages) for splits in (2, 4) for stages in (3, 6)]
    some = [Tiles(64, *cut) for cut in product((64, 128), (64, 128), (1, 2), (4,), (3, 4))]
    some += [Tiles(64, 128, 64, 2, 8, 3), Tiles(64, 128, 128, 2, 8, 3)]
    many = [Tiles(256, 128, 64, 1, 8, stages) for stages in (2, 3, 4)]
    many += [Tiles(128, 128, 64, 1, *cut) for cut in product((4, 8), (3, 4))]
    many += [
        Tiles(256, 64, 64, 1, 4, 3),
        Tiles(128, 64, 64, 1, 4, 4),
        Tiles(256, 128, 128, 1, 8, 3),
    ]
    many += [Tiles(128, 256, 64, 1, 8, 3), Tiles(128, 128, 128, 1, 8, 3)]
    for m, cuts in ((1, few), (16, few), (64, some), (256, [*some, *many]), (2048, many)):
        compute = m > 128
        work = 2.0 * m * n * k if compute else n * k * (0.5 + 2.0 / 128)
        unit = "FLOP/s" if compute else "B/s"
        for cut in [None, *cuts]:
            build = _low_bit_build(m, n, k)
            yield Candidate("wna16_gemm", f"w4 {m}x{n}x{k}", cut, work, unit, build)


def _low_bit_build(m: int, n: int, k: int) -> Callable[[Any, Any], Call]:
    def build(bench: Any, tiles: Any) -> Call:
        from llmsim_kernels.ops.wna16_gemm import wna16_gemm
        from llmsim_kernels.profiler.torchbench import in_turn

        torch = bench.torch
        copies = bench.copies(n * k / 2)
        words = bench.rotated((k // 32, 4, n, 4), "int8", copies)
        scales = bench.rotated((k // 128, n), "bf16", copies)
        a = bench.warm((m, k), "bf16")

        def call(operands: tuple[Any, Any]) -> Any:
            packed = operands[0].view(torch.int32).squeeze(-1)
            return wna16_gemm(a, packed, operands[1], tiles=tiles)

        return Call(in_turn(call, list(zip(words, scales, strict=True))))

    return build


def compile_some(device: Any, share: int, shares: int, kernels: Sequence[str] = ()) -> None:
    """Run one call of this process's share of the candidates, so that they are compiled."""
    import zlib

    for one in candidates(kernels):
        if zlib.crc32(one.code.encode()) % shares == share:
            _median_us(device, one, once=True)


def _median_us(device: Any, one: Candidate, *, once: bool = False) -> tuple[float, str]:
    """Return the time of a call [us] and why there is none."""
    torch = device.bench.torch
    try:
        with torch.inference_mode():
            build = (one.small if once else None) or one.build
            call = build(device.bench, one.tiles)
            if once:
                call.variants[0]()
                torch.cuda.synchronize()
                return 0.0, ""
            samples = device.replay_graph(call, Effort(3, 0.02))
    # a cut may not fit or not compile, and Triton's errors have no base but Exception
    except Exception as error:
        if "illegal" in str(error):
            raise DeviceLostError(str(error)) from None
        return 0.0, f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return sorted(samples)[len(samples) // 2] * 1e6, ""


def time_all(device: Any, out: Path, kernels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Time every candidate; rows are written as they come.

    Parameters
    ----------
    device : CudaDevice
    out : Path
    kernels : sequence of str
        As for `candidates`.
    """
    rows = []
    with open(out, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for one in candidates(kernels):
            median_us, note = _median_us(device, one)
            rows.append(
                {
                    "kernel": one.kernel,
                    "shape": one.shape,
                    "tiles": "" if one.tiles is None else str(one.tiles),
                    "present": one.tiles is None,
                    "median_us": round(median_us, 3),
                    "achieved": f"{one.work / median_us * 1e6:.4g}" if median_us else "",
                    "unit": one.unit,
                    "note": note,
                }
            )
            table.writerow(rows[-1])
            file.flush()
    return rows


def told(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return a line for each kernel and shape: what is reached now, and at best."""
    shapes = dict.fromkeys((row["kernel"], row["shape"]) for row in rows)
    for kernel, shape in shapes:
        here = [row for row in rows if (row["kernel"], row["shape"]) == (kernel, shape)]
        timed = [row for row in here if row["median_us"]]
        now = next((row for row in timed if row["present"]), None)
        best = min(timed, key=lambda row: float(row["median_us"]), default=None)
        if now and best:
            yield (
                f"{kernel:18}{shape:34}{now['median_us']:>11.2f} us {now['achieved']:>10} "
                f"{now['unit']:7} best {best['median_us']:>11.2f} us {best['tiles']}"
            )


def main(words: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llmsim_kernels.tune")
    parser.add_argument("--out", type=Path, default=Path("tune.csv"))
    parser.add_argument("--compile", default="", help="compile a share such as 0/12, time nothing")
    parser.add_argument("--kernel", action="append", default=[], help="this one alone")
    given = parser.parse_args(words)
    from llmsim_kernels.profiler.run import open_device

    device = open_device("")
    if given.compile:
        share, shares = (int(word) for word in given.compile.split("/"))
        compile_some(device, share, shares, given.kernel)
        return 0
    for line in told(time_all(device, given.out, given.kernel)):
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
