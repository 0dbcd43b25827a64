"""What the sampler's search for the cut must not depend on, and the rows that are hard for it."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from llmsim_kernels.ops import reference, sampler  # noqa: E402
from llmsim_kernels.ops.sampler import sample  # noqa: E402

VOCAB = 1300


def limits(seed=5):
    """Return the limits and draws of six rows: every mix of both."""
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    top_k = torch.tensor([50, 0, 1, 700, 1299, 0], dtype=torch.int32)
    top_p = torch.tensor([0.9, 0.95, 0.5, 0.8, 1.0, 1.0])
    return top_k, top_p, torch.tensor([1.0, 0.7, 1.2, 1.0, 0.5, 2.0]), uniform


def logits_of(kind):
    draw = torch.Generator().manual_seed(len(kind))
    x = torch.randn((6, VOCAB), generator=draw) * 3
    if kind == "few values":  # what a head in bf16 leaves, and more so
        return (x / 2).round() * 2
    if kind == "masked":  # fewer than k are left
        x[torch.rand(x.shape, generator=draw) < 0.98] = float("-inf")
        x[:, 17] = 0.0
    if kind == "far apart":
        x[:, ::3] *= 1e4
    if kind == "close":
        x = x * 1e-6 + 20.0
    return x


@pytest.mark.parametrize("kind", ["normal", "few values", "masked", "far apart", "close"])
def test_the_cut_is_that_of_sorting(kind):
    logits = logits_of(kind)
    assert torch.equal(sample(logits, *limits()), reference.sampled(logits, *limits()))


@pytest.mark.parametrize("kind", ["normal", "few values"])
def test_what_passes_leave_open_is_halved(kind, monkeypatch):
    monkeypatch.setattr(sampler, "TURNS", 1)
    logits = logits_of(kind)[:, :500].contiguous()
    assert torch.equal(sample(logits, *limits()), reference.sampled(logits, *limits()))


def test_a_row_does_not_depend_on_chunks_nor_on_its_neighbours(monkeypatch):
    logits = logits_of("normal")
    together = sample(logits, *limits())
    alone = [sample(logits[at : at + 1], *(x[at : at + 1] for x in limits())) for at in (0, 1, 3)]
    assert torch.equal(together[[0, 1, 3]], torch.cat(alone))
    monkeypatch.setattr(sampler, "_chunk_for", lambda *_: 1024)
    assert torch.equal(together, sample(logits, *limits()))


def test_zeros_of_both_signs_tie():
    logits = torch.tensor([[0.0, -0.0, -1.0, -0.0]]).repeat(3, 1)
    ones = torch.ones(3)
    drawn = sample(logits, ones.int(), ones, ones, torch.tensor([0.1, 0.5, 0.9]))
    assert drawn.tolist() == [0, 1, 3]
