"""How a mixed batch is cut into query tiles, once per step and outside the launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmsim_kernels.ops.device import capability_of


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a launch is cut.

    Parameters
    ----------
    rows, tile : int
        Rows of a query tile (tokens times packed heads); keys read at a time.
    warps, stages : int
    """

    rows: int
    tile: int
    warps: int
    stages: int


def tiles_for(device: Any, dim: int, longest: int, heads: int, shortest: int = 1) -> Tiles:
    """Return the cut of a launch.

    Parameters
    ----------
    device : torch.device
    dim : int
        Width of a head.
    longest : int [tokens]
        Most new tokens of one request.
    heads : int
        Query heads packed into a tile; 1 if unpacked.
    shortest : int [tokens]
        Fewest new tokens of one request.

    Notes
    -----
    On an H100 (bf16, width 128) a prompt of 8,192 tokens takes 1.53 ms with tiles of 128 by 128
    and 1.72 ms with 64 by 64; one of 2,048 beside 64 decodes at 8,192 takes 0.87 ms with the
    latter, and more with all others.
    """
    capability = capability_of(device)
    if capability == 0:
        return Tiles(max(16, heads), 32, 4, 1)
    hopper = capability in (90, 100)
    if hopper and dim <= 128 and shortest * heads >= 128:
        return Tiles(max(128, 1 << (heads - 1).bit_length()), 128, 8, 3)
    few = longest * heads <= 1024 or dim > 128 or hopper
    rows = 16 if longest * heads <= 16 else 64 if few else 128
    rows = max(rows, 1 << (heads - 1).bit_length())
    stages = 3 if hopper and dim <= 128 else 2
    return Tiles(rows, 64 if dim <= 128 else 32, 8 if rows >= 128 else 4, stages)


@dataclass(frozen=True, slots=True)
class Plan:
    """A mixed batch, cut into query tiles; made once per step, outside the launch.

    Parameters
    ----------
    starts : Tensor (requests + 1,), int32 [tokens]
        Where each request's new tokens begin.
    tile_request, tile_token : Tensor (tiles,), int32
        Request and first new token of each tile.
    pack : bool
    tiles : Tiles
    """

    starts: Any
    tile_request: Any
    tile_token: Any
    pack: bool
    tiles: Tiles


def plan_batch(
    new_tokens: Sequence[int],
    group: int,
    dim: int,
    device: Any,
    *,
    pack: bool = True,
    tiles: Tiles | None = None,
) -> Plan:
    """Cut a mixed batch into query tiles, longest requests first so that they do not end last.

    Parameters
    ----------
    new_tokens : sequence of int (requests,) [tokens]
        1 for a decode, the chunk for a prefill.
    group, dim : int
        Query heads of a KV head; width of a head.
    device : torch.device
    pack : bool
        Whether the heads of a group share a tile.
    tiles : Tiles or None
        From `tiles_for` if None.
    """
    heads = group if pack else 1
    cut = tiles or tiles_for(device, dim, max(new_tokens), heads, min(new_tokens))
    each = cut.rows // heads
    order = sorted(range(len(new_tokens)), key=lambda request: -new_tokens[request])
    found = [(r, first) for r in order for first in range(0, new_tokens[r], each)]
    starts = [0]
    for count in new_tokens:
        starts.append(starts[-1] + count)
    whole = torch.tensor(found, dtype=torch.int32, device=device).reshape(-1, 2).T.contiguous()
    table = torch.tensor(starts, dtype=torch.int32, device=device)
    return Plan(table, whole[0], whole[1], pack, cut)
