"""Low-bit numbers: e4m3 by its bits, all widths of weights, 4-bit caches, the rotation."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytestmark = pytest.mark.torch

import triton.language as tl  # noqa: E402
from llmsim_kernels.ops import reference  # noqa: E402
from llmsim_kernels.ops.bits import e4m3_to_half, to_e4m3  # noqa: E402
from llmsim_kernels.ops.kv_int4 import rotate64, write_int4  # noqa: E402
from llmsim_kernels.ops.quantise import quantise  # noqa: E402
from llmsim_kernels.ops.w4a16_gemm import Tiles  # noqa: E402
from llmsim_kernels.ops.wna16_gemm import pack_weights, wna16_gemm  # noqa: E402


@triton.jit
def _decode(byte_ptr, out_ptr, native: tl.constexpr, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(out_ptr + at, e4m3_to_half(tl.load(byte_ptr + at), native))


@triton.jit
def _encode(x_ptr, out_ptr, native: tl.constexpr, size: tl.constexpr):
    at = tl.program_id(0) * size + tl.arange(0, size)
    tl.store(out_ptr + at, to_e4m3(tl.load(x_ptr + at), native))


def draws(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("native", [False, True])
def test_every_e4m3_byte_is_decoded_exactly(native):
    byte = torch.arange(256, dtype=torch.uint8)
    out = torch.zeros(256, dtype=torch.float16)
    _decode[(1,)](byte, out, native, 256)
    right = byte.view(torch.float8_e4m3fn).half()
    numbers = ~right.isnan()
    assert int(numbers.sum()) == 254
    assert torch.equal(out[numbers], right[numbers])


def test_every_half_within_range_is_encoded_as_torch_does():
    half = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = half[half.isfinite() & (half.abs() <= 448)].float()
    x = torch.cat([x, x.new_zeros(-len(x) % 4096)])
    out = torch.zeros(len(x), dtype=torch.uint8)
    _encode[(len(x) // 4096,)](x, out, False, 4096)
    assert torch.equal(out, x.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_take_exactly_their_bits(bits):
    levels = torch.randint(0, 2**bits, (8, 256), generator=draws())
    words = pack_weights(levels, bits)
    assert words.dtype == torch.int32
    assert words.numel() * 32 == levels.numel() * bits


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_weight_is_where_it_belongs(bits):
    """A one-hot row of activations reads one weight of every column, exactly."""
    k, n = 128, 32
    levels = torch.randint(0, 2**bits, (n, k), generator=draws())
    levels[:, 0], levels[:, 1] = 0, 2**bits - 1
    found = wna16_gemm(torch.eye(k), pack_weights(levels, bits), torch.ones(1, n))
    assert torch.equal(found, (levels - 2 ** (bits - 1)).T.float())


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("tile_k", [64, 128])
def test_splits_of_k_add_up(splits, tile_k):
    levels = torch.randint(0, 16, (40, 640), generator=draws())
    scales = torch.rand((5, 40), generator=draws(2)) + 0.5
    a = torch.randn((19, 640), generator=draws(3))
    cut = Tiles(16, 32, tile_k, splits, 4, 1)
    found = wna16_gemm(a, pack_weights(levels, 4), scales, tiles=cut)
    right = reference.unpacked_product(a, levels, scales, 4)
    assert float((found - right).norm() / right.norm()) < 1e-6


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tile_m", [16, 64])
def test_four_bits_in_mantissas(scale_dtype, tile_m):
    """16-bit types take other ways than fp32: levels as mantissas, scales by pairs and early."""
    levels = torch.randint(0, 16, (50, 256), generator=draws())
    scales = torch.rand((2, 50), generator=draws(2)).to(scale_dtype) + 0.5
    a = torch.randn((70, 256), generator=draws(3)).half()
    cut = Tiles(tile_m, 32, 64, 1, 4, 1)
    words = pack_weights(levels, 4)
    found = wna16_gemm(a, words, scales, dtype=torch.float32, tiles=cut)
    right = reference.unpacked_product(a, levels, scales, 4)
    assert float((found - right).norm() / right.norm()) < 5e-4  # half a step of fp16
    exact = wna16_gemm(a, words, torch.ones_like(scales), dtype=torch.float32, tiles=cut)
    whole = reference.unpacked_product(a, levels, torch.ones_like(scales), 4)
    assert float((exact - whole).norm() / whole.norm()) < 1e-6


def test_weights_for_int8_activations_are_packed_as_other_widths_are():
    levels = torch.randint(0, 16, (8, 64), generator=draws())
    fields = pack_weights(levels, 4, a8=True).view(2, 4, 8)
    assert not torch.equal(fields, pack_weights(levels, 4))
    assert torch.equal(fields[0, 0] & 15, levels[:, 0].int())
    assert torch.equal((fields[1, 3] >> 4) & 15, levels[:, 57].int())


def test_int8_activations_multiply_exactly():
    levels = torch.randint(0, 16, (32, 256), generator=draws())
    a = torch.randint(-127, 128, (5, 256), generator=draws(2)).to(torch.int8)
    ones = torch.ones(2, 32)
    found = wna16_gemm(
        a, pack_weights(levels, 4, a8=True), ones, a_scales=torch.ones(5), dtype=torch.float32
    )
    assert torch.equal(found, (a.long() @ (levels - 8).T).float())


def test_the_rotation_is_orthogonal_and_its_own_inverse():
    matrix = rotate64(torch.eye(64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(64), atol=1e-6)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix.abs(), torch.full((64, 64), 0.125))
    x = torch.randn((3, 192), generator=draws())
    assert torch.allclose(rotate64(rotate64(x)), x, atol=1e-5)
    turned = rotate64(x).view(9, 64)
    assert torch.allclose(turned.norm(dim=1), x.view(9, 64).norm(dim=1), rtol=1e-5)


def cached(x, rotate):
    tokens, heads, dim = x.shape
    cache = torch.full((1, tokens, heads, dim // 2), 255, dtype=torch.uint8)
    terms = torch.zeros((1, tokens, heads, 2), dtype=torch.float16)
    write_int4(x, torch.arange(tokens), cache, terms, rotate=rotate)
    return reference.int4_numbers(cache, terms)[0]


def test_a_4_bit_cache_is_off_by_half_a_step_at_most():
    x = torch.randn((4, 3, 64), generator=draws())
    step = (x.amax(-1) - x.amin(-1)) / 15
    worst = (cached(x, rotate=False) - x).abs().amax(-1)
    assert (worst <= 0.51 * step + 1e-3).all()  # steps are rounded to fp16


def test_the_rotation_tames_outliers():
    x = torch.randn((8, 2, 64), generator=draws())
    x[:, :, 5] *= 40  # as some key channels have
    plain = cached(x, rotate=False)
    turned = rotate64(cached(x, rotate=True).contiguous())
    ordinary = [channel for channel in range(64) if channel != 5]
    errors = [((y - x)[..., ordinary]).norm() for y in (plain, turned)]
    assert errors[1] < 0.5 * errors[0]


def test_a_token_without_a_slot_is_not_written():
    x = torch.randn((2, 2, 64), generator=draws())
    cache = torch.zeros((1, 4, 2, 32), dtype=torch.uint8)
    terms = torch.zeros((1, 4, 2, 2), dtype=torch.float16)
    write_int4(x, torch.tensor([-1, 2]), cache, terms)
    written = cache[0].flatten(1).any(1)
    assert written.tolist() == [False, False, True, False]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_row_of_zeros_stays_zero(kind):
    x = torch.randn((3, 100), generator=draws())
    x[1] = 0
    kept, scales = quantise(x, kind)
    assert kept[1].float().abs().max() == 0
    assert float(scales[1]) == 1.0
    largest = {"int8": 127.0, "fp8": 448.0}[kind]
    assert kept[0].float().abs().max() == largest
