"""Decode attention over a 4-bit KV cache, transposed: keys and values are the left operands.

Hopper's tensor cores take their left operand from registers, so that levels which are turned into
numbers there need not pass through shared memory. Scores are (tokens, queries), results are
(numbers of a head, queries). Levels come four in a unit of 16 bits, whose order decides in which
order queries are read and results are written. `llmsim_kernels.ops.paged_decode` launches it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmsim_kernels.ops.splits import part_tokens


@triton.constexpr_function
def _assembly(at, bf16):
    """Return the instructions that put level `at` of two units into the mantissas of the base."""
    base = "0x43004300" if bf16 else "0x64006400"
    return f"{{.reg .b32 t; shr.u32 t, $1, {4 * at}; lop3.b32 $0, t, 0x000f000f, {base}, 0xEA;}}"


@triton.jit
def _level(units, AT: tl.constexpr, kind: tl.constexpr, ASM: tl.constexpr):
    """Return level `AT` of each unit plus 128 (bf16) or 1024 (fp16); in fp32 plus nothing."""
    if kind == tl.float32:
        number = ((units >> (4 * AT)) & 15).to(kind)
    elif ASM:  # two at a time
        number = tl.inline_asm_elementwise(
            _assembly(AT, kind == tl.bfloat16),
            "=r,r",
            [units],
            dtype=tl.int16,
            is_pure=True,
            pack=2,
        ).to(kind, bitcast=True)
    else:
        base: tl.constexpr = 0x4300 if kind == tl.bfloat16 else 0x6400
        number = (((units >> (4 * AT)) & 15) | base).to(tl.int16).to(kind, bitcast=True)
    return number


@triton.jit
def _levels(units, kind: tl.constexpr, ASM: tl.constexpr):
    """Return (..., 2, 2) levels of each unit: by half of the head, and by byte."""
    low = tl.join(_level(units, 0, kind, ASM), _level(units, 1, kind, ASM))
    high = tl.join(_level(units, 2, kind, ASM), _level(units, 3, kind, ASM))
    return tl.join(low, high)


@triton.jit
def _rounded(x, kind: tl.constexpr, ASM: tl.constexpr):
    """Return fp32 numbers rounded to a type, two by one instruction."""
    if ASM and kind == tl.bfloat16:
        near = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        near = x.to(kind)
    return near


@triton.jit
def _terms(terms_ptr, slot, ok):
    """Return step and middle of tokens, zero where there is none."""
    both = tl.load(terms_ptr.to(tl.pointer_type(tl.int32)) + slot, mask=ok, other=0)
    step = both.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    middle = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return step, middle


@triton.jit(do_not_specialize=["heads_kv", "table_width", "wanted", "most"])
def attend_int4_part(
    q_ptr,
    k_ptr,
    v_ptr,
    k_terms_ptr,
    v_terms_ptr,
    table_ptr,
    contexts_ptr,
    out_ptr,
    lse_ptr,
    heads_kv,
    table_width,
    wanted,
    most,
    k_scale,
    v_scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    DIRECT: tl.constexpr,
    ASM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to one part of a context; parameters are those of `_attend_part` in paged_decode."""
    HALF: tl.constexpr = DIM // 2
    UNITS: tl.constexpr = DIM // 4
    QUADS: tl.constexpr = DIM // 32
    row_blocks: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    request = tl.program_id(0).to(tl.int64)
    head_kv = tl.program_id(1) // row_blocks
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    context = tl.load(contexts_ptr + request)
    begin = context * 0
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0)
    part = part_tokens(context - begin, wanted, most, TILE)
    first = begin + split * part
    last = tl.minimum(first + part, context)

    row = (tl.program_id(1) % row_blocks) * ROWS + tl.arange(0, ROWS)
    row_ok = row < GROUP
    head = request * heads_kv * GROUP + head_kv * GROUP + row
    to = head * splits + split
    if (split > 0) & (first >= context):  # this context has fewer parts than the longest
        tl.store(lse_ptr + to, tl.full((ROWS,), float("-inf"), tl.float32), mask=row_ok)
        return
    kind: tl.constexpr = q_ptr.dtype.element_ty
    # level 8 is the middle; the base of the numbers is taken off along with it
    zero_level: tl.constexpr = (
        136.0 if kind == tl.bfloat16 else 1032.0 if kind == tl.float16 else 8.0
    )
    # of 16 numbers a thread takes 2t, 2t + 1 and the two 8 further; so that it finds them in QUADS
    # pairs of units which lie together, place 32 j + 16 byte + 8 half + 2t + e has pair QUADS t + j
    place = tl.arange(0, DIM)
    pair = (place // 2) % 4 * QUADS + place // 32
    k_dims = 4 * pair + 2 * (place % 2) + place // 16 % 2 + HALF * (place // 8 % 2)
    # rows g and g + 8 of the product are the halves of one unit, for each byte of it
    v_dims = 2 * (place // 16 % QUADS * 8 + place % 8) + place // HALF + HALF * (place // 8 % 2)

    q_at = q_ptr + head[None, :] * DIM + k_dims[:, None]
    q = tl.load(q_at, mask=row_ok[None, :], other=0.0)
    q_sum = tl.sum(q.to(tl.float32), 0)
    acc = tl.zeros((DIM, ROWS), tl.float32)
    # sums over tokens are kept by token until the end, as each would need all threads
    total = tl.zeros((TILE, ROWS), tl.float32)
    zeros = tl.zeros((TILE, ROWS), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    unit = tl.arange(0, UNITS)
    k_units_ptr = k_ptr.to(tl.pointer_type(tl.int16))
    v_units_ptr = v_ptr.to(tl.pointer_type(tl.int16))
    pages_ptr = table_ptr + request * table_width
    ahead = first + tl.arange(0, TILE)
    page = tl.load(pages_ptr + ahead // PAGE, mask=ahead < last, other=0)

    for start in range(first, last, TILE):
        token = start + tl.arange(0, TILE)
        ok = token < last
        slot = (page.to(tl.int64) * PAGE + token % PAGE) * heads_kv + head_kv
        ahead = token + TILE
        next_page = tl.load(pages_ptr + ahead // PAGE, mask=ahead < last, other=0)
        units = tl.load(k_units_ptr + slot[:, None] * UNITS + unit[None, :])
        step, middle = _terms(k_terms_ptr, slot, ok)
        levels = tl.reshape(_levels(units, kind, ASM), (TILE, 4, QUADS, 2, 2, 2))
        k = tl.reshape(tl.permute(levels, (0, 2, 5, 4, 1, 3)), (TILE, DIM))
        scores = tl.dot(k, q, input_precision=PRECISION)
        step *= k_scale
        zero = middle * k_scale - step * zero_level
        hidden = tl.where(ok, 0.0, float("-inf"))
        scores = scores * step[:, None] + (q_sum[None, :] * zero[:, None] + hidden[:, None])
        higher = tl.maximum(top, tl.max(scores, 0))
        weight = tl.exp2(scores - higher[None, :])
        fade = tl.exp2(top - higher)
        top = higher
        total = total * fade[None, :] + weight

        units = tl.load(v_units_ptr + slot[:, None] * UNITS + unit[None, :])
        step, middle = _terms(v_terms_ptr, slot, ok)
        steps = _rounded(weight * step[:, None], kind, ASM)
        zero = weight * middle[:, None] - steps.to(tl.float32) * zero_level
        zeros = zeros * fade[None, :] + zero
        levels = tl.reshape(_levels(tl.trans(units), kind, ASM), (QUADS, 8, TILE, 2, 2))
        v = tl.reshape(tl.permute(levels, (4, 0, 3, 1, 2)), (DIM, TILE))
        acc = tl.dot(v, steps, acc * fade[None, :], input_precision=PRECISION)
        page = next_page

    sums = tl.sum(total, 0)
    norm = v_scale / tl.where(sums > 0, sums, 1.0)
    acc = (acc + tl.sum(zeros, 0)[None, :]) * norm[None, :]
    tl.store(out_ptr + to[None, :] * DIM + v_dims[:, None], acc, mask=row_ok[None, :])
    if not DIRECT:
        lse = tl.where(sums > 0, top + tl.log2(tl.maximum(sums, 1.0e-30)), float("-inf"))
        tl.store(lse_ptr + to, lse, mask=row_ok)
