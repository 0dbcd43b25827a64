"""Attention: pages of every size in shuffled order, windows, splits, groups, ragged lengths."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from llmsim_kernels.ops import reference  # noqa: E402
from llmsim_kernels.ops.paged_decode import Tiles, paged_decode, tiles_for  # noqa: E402
from llmsim_kernels.ops.sparse_attention import sparse_attention  # noqa: E402
from llmsim_kernels.ops.varlen_attention import plan_batch, varlen_attention  # noqa: E402


def normal(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(found, right):
    return float((found.double() - right.double()).norm() / right.double().norm())


def scattered(keys, page, seed=3):
    """Write (tokens, heads, dim) to shuffled pages; return cache and page table row."""
    tokens, heads, dim = keys.shape
    pages = -(-tokens // page)
    order = torch.randperm(pages + 2, generator=torch.Generator().manual_seed(seed))[:pages]
    cache = torch.full((pages + 2, page, heads, dim), 1e4)  # whoever reads a stray page shows it
    for index, place in enumerate(order.tolist()):
        part = keys[index * page : (index + 1) * page]
        cache[place, : len(part)] = part
    return cache, order.int()[None]


def by_hand(q, keys, values):
    """Softmax attention of one token in plain Python."""
    out = []
    group = q.shape[0] // keys.shape[1]
    for head in range(q.shape[0]):
        k, v = keys[:, head // group], values[:, head // group]
        scores = [float(q[head] @ row) / math.sqrt(q.shape[1]) for row in k]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        out.append(sum(w * row for w, row in zip(weights, v, strict=True)) / sum(weights))
    return torch.stack(out)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("dim", "group"), [(32, 4), (128, 20)])
def test_4_bit_caches_are_read_up_to_the_context_and_no_further(dim, group, window):
    """Slots that nobody has written yet may hold anything, such as terms that are no numbers."""
    draws = torch.Generator().manual_seed(5)
    cache = torch.randint(0, 256, (2, 14, 16, 1, dim // 2), generator=draws).to(torch.uint8)
    terms = (normal(2, 14, 16, 1, 2) * 0.05 + 0.1).half()
    table = torch.randperm(13, generator=draws).int()[None] + 1
    numbers = [reference.int4_numbers(*each) for each in zip(cache, terms, strict=True)]
    q = normal(1, group, dim)
    right = reference.paged_attention(q, *numbers, table, [200], [1], window)
    terms[:, table[0, -1].item(), 200 % 16 :] = float("nan")
    terms[:, 0] = float("nan")
    found = paged_decode(
        q,
        *cache,
        table,
        torch.tensor([200], dtype=torch.int32),
        200,
        window=window,
        k_terms=terms[0],
        v_terms=terms[1],
        tiles=Tiles(16, 64, 2),
    )
    assert relative(found, right) < 1e-5  # fp32; numbers of both signs nearly cancel


@pytest.mark.parametrize("page", [16, 64, 128])
@pytest.mark.parametrize("splits", [1, 3])
def test_decode_reads_shuffled_pages(page, splits):
    q, keys, values = normal(1, 4, 32), normal(150, 2, 32, seed=2), normal(150, 2, 32, seed=4)
    (k, table), (v, _) = scattered(keys, page), scattered(values, page)
    contexts = torch.tensor([150], dtype=torch.int32)
    found = paged_decode(q, k, v, table, contexts, 150, tiles=Tiles(16, 32, splits))
    assert relative(found[0], by_hand(q[0], keys, values)) < 1e-6


@pytest.mark.parametrize("window", [1, 20, 32, 149, 150, 400])
def test_decode_sees_the_window_only(window):
    q, keys, values = normal(1, 4, 32), normal(150, 2, 32, seed=2), normal(150, 2, 32, seed=4)
    (k, table), (v, _) = scattered(keys, 16), scattered(values, 16)
    contexts = torch.tensor([150], dtype=torch.int32)
    cut = Tiles(16, 32, 3)
    found = paged_decode(q, k, v, table, contexts, 150, window=window, tiles=cut)
    assert relative(found[0], by_hand(q[0], keys[-window:], values[-window:])) < 1e-6


@pytest.mark.parametrize("context", [1, 15, 16, 17, 31, 32, 33])
def test_decode_at_the_edges_of_tiles_and_pages(context):
    q, keys, values = normal(1, 2, 32), normal(context, 1, 32, seed=2), normal(context, 1, 32)
    (k, table), (v, _) = scattered(keys, 16), scattered(values, 16)
    contexts = torch.tensor([context], dtype=torch.int32)
    for splits in (1, 4):  # some parts get nothing
        cut = Tiles(16, 16, splits)
        found = paged_decode(q, k, v, table, contexts, context, tiles=cut)
        assert relative(found[0], by_hand(q[0], keys, values)) < 1e-6


def test_a_request_without_context_gets_zeros():
    q, cache = normal(2, 2, 32), normal(3, 16, 1, 32)
    table = torch.zeros((2, 1), dtype=torch.int32)
    contexts = torch.tensor([0, 3], dtype=torch.int32)
    for splits in (1, 2):
        found = paged_decode(q, cache, cache, table, contexts, 3, tiles=Tiles(16, 16, splits))
        assert found[0].abs().max() == 0
        assert found[1].abs().max() > 0


@pytest.mark.parametrize(("heads_q", "heads_kv"), [(7, 1), (20, 1), (64, 1), (5, 5)])
def test_decode_of_any_group(heads_q, heads_kv):
    q, keys = normal(1, heads_q, 32), normal(40, heads_kv, 32, seed=2)
    k, table = scattered(keys, 16)
    contexts = torch.tensor([40], dtype=torch.int32)
    found = paged_decode(q, k, k, table, contexts, 40, tiles=Tiles(16, 32, 2))
    assert relative(found[0], by_hand(q[0], keys, keys)) < 1e-6


def test_contexts_are_split_until_the_gpu_is_full_and_no_part_is_long():
    from llmsim_kernels.ops.device import assumed

    device = torch.device("cpu")
    with assumed(90):
        cuts = [tiles_for(device, batch, 8, 4, 128, 8192) for batch in (1, 4, 32, 256)]
        assert [cut.wanted for cut in cuts] == [33, 9, 2, 1]  # two programs per multiprocessor
        assert [cut.most for cut in cuts] == [256, 256, 512, 1024]
        assert [cut.splits for cut in cuts] == [33, 32, 16, 8]
        assert tiles_for(device, 1, 8, 4, 128, 512).splits == 4  # 128 tokens in each part
        assert tiles_for(device, 256, 8, 4, 128, 131_072).most == 2048  # of 64 parts


def test_each_context_is_cut_by_its_own_length():
    lengths = [700, 129, 1, 64, 0]
    q = normal(len(lengths), 4, 32)
    parts = [(normal(n, 2, 32, seed=n), normal(n, 2, 32, seed=n + 1)) for n in lengths]
    caches = [[scattered(each, 16, seed=n) for each in part] for n, part in enumerate(parts)]
    k, v = (torch.cat([cache[which][0] for cache in caches]) for which in (0, 1))
    table = torch.zeros((len(lengths), 44), dtype=torch.int32)
    first = 0
    for row, cache in enumerate(caches):
        pages = cache[0][1][0]
        table[row, : len(pages)] = first + pages
        first += len(cache[0][0])
    contexts = torch.tensor(lengths, dtype=torch.int32)
    out = torch.full_like(q, float("nan"))
    cut = Tiles(16, 32, 6, wanted=3, most=128)  # of 700 tokens six parts, of 129 two, of 64 one
    assert paged_decode(q, k, v, table, contexts, 700, tiles=cut, out=out) is out
    for row, (keys, values) in enumerate(parts[:-1]):
        assert relative(out[row], by_hand(q[row], keys, values)) < 1e-6
    assert not out[-1].any()


@pytest.mark.parametrize("pack", [True, False])
def test_mixed_batches_in_one_launch(pack):
    contexts, new = [40, 17, 33, 1], [7, 17, 1, 1]
    each = 3
    table = torch.randperm(12, generator=torch.Generator().manual_seed(5)).int().view(4, each)
    k, v = normal(12, 16, 2, 32, seed=6), normal(12, 16, 2, 32, seed=7)
    q = normal(sum(new), 6, 32, seed=8)
    plan = plan_batch(new, 3, 32, q.device, pack=pack)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    found = varlen_attention(q, k, v, table, lengths, plan)
    assert relative(found, reference.paged_attention(q, k, v, table, contexts, new)) < 1e-6
    # the decodes are what the decode kernel says
    decodes = torch.tensor([24, 25])
    alone = paged_decode(q[decodes], k, v, table[2:], lengths[2:], 33)
    assert relative(found[decodes], alone) < 1e-6


def test_packing_makes_fewer_tiles():
    device = torch.device("cpu")
    new = [1] * 8
    packed = plan_batch(new, 4, 32, device, pack=True)
    assert packed.tile_request.tolist() == list(range(8))
    long = plan_batch([100, 1], 4, 32, device, pack=True)
    assert long.tiles.rows // 4 * (len(long.tile_token) - 1) >= 100
    assert long.starts.tolist() == [0, 100, 101]


def test_a_token_does_not_see_the_future():
    table = torch.arange(2, dtype=torch.int32)[None]
    k, v = normal(2, 16, 1, 32), normal(2, 16, 1, 32, seed=2)
    q = normal(20, 1, 32, seed=3)
    plan, contexts = plan_batch([20], 1, 32, q.device), torch.tensor([20], dtype=torch.int32)
    before = varlen_attention(q, k, v, table, contexts, plan)
    k[0, 11], v[0, 11] = 50.0, -50.0
    after = varlen_attention(q, k, v, table, contexts, plan)
    assert torch.equal(before[:11], after[:11])
    assert not torch.equal(before[11:], after[11:])


def test_sparse_attention_with_all_blocks_is_dense():
    q, k, v = normal(1, 30, 4, 32), normal(1, 30, 2, 32, seed=2), normal(1, 30, 2, 32, seed=3)
    lists = torch.arange(2, dtype=torch.int32).expand(1, 4, 2, 2).contiguous()
    counts = torch.full((1, 4, 2), 2, dtype=torch.int32)
    found = sparse_attention(q, k, v, lists, counts, 16, 16)
    table = torch.zeros((1, 1), dtype=torch.int32)
    dense = reference.paged_attention(q[0], k, v, table, [30], [30])
    assert relative(found[0], dense) < 1e-6


def test_heads_read_their_own_blocks():
    q, k, v = normal(1, 1, 4, 32), normal(1, 64, 2, 32, seed=2), normal(1, 64, 2, 32, seed=3)
    lists = torch.tensor([3, 1], dtype=torch.int32).view(1, 2, 1, 1)
    counts = torch.ones((1, 2, 1), dtype=torch.int32)
    found = sparse_attention(q, k, v, lists, counts, 16, 1)[0, 0]
    assert relative(found[:2], by_hand(q[0, 0, :2], k[0, 48:, :1], v[0, 48:, :1])) < 1e-6
    assert relative(found[2:], by_hand(q[0, 0, 2:], k[0, 16:32, 1:], v[0, 16:32, 1:])) < 1e-6
    nothing = sparse_attention(q, k, v, lists, counts * 0, 16, 1)
    assert nothing.abs().max() == 0
