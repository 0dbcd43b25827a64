"""Joint steps of attention ranks: what is padded, what adds up, what the slowest decides."""

import numpy as np
import pytest

import llmsim as ls
from llmsim.core.errors import InputError, ModelDoesNotFitError, ScenarioError
from llmsim.costmodel import RooflineCost, check_layout, plan_memory
from llmsim.costmodel.communication import Network
from llmsim.costmodel.contract import RankLoad
from llmsim.costmodel.exchange import expert_exchange
from llmsim.costmodel.ranks import RankedCost
from llmsim.scenario import Scenario
from llmsim.specs import EngineLimits, MoeMlp, ParallelPlan, load_gpu, load_link, load_model

H200 = load_gpu("h200-sxm")
LINK = load_link("nvlink4")
MODEL = load_model("deepseek-v3")
LIMITS = EngineLimits(max_num_seqs=256, max_num_batched_tokens=4096, max_model_len=8192)
EIGHT = ParallelPlan(tp=1, dp=8, ep=8)


@pytest.fixture(scope="module")
def cost():
    return RankedCost(RooflineCost(MODEL, H200, LINK, EIGHT, LIMITS))


def decodes(*ranks: tuple[int, int]) -> list[RankLoad]:
    """Ranks with so many decodes of so many tokens of context, a multiple of 128."""
    return [RankLoad([], batch, batch * context, 0, batch) for batch, context in ranks]


def test_a_step_and_its_line_agree(cost):
    for loads in (decodes(*[(32, 1024)] * 8), decodes((200, 8192), *[(0, 128)] * 7)):
        batches = [load.decode for load in loads]
        lead = max(range(8), key=lambda r: loads[r].padded)
        line = cost.decode_line(batches, lead, loads[lead].padded)
        priced = line.base_ns + line.per_token_ns * loads[lead].padded
        assert cost.step_ns(loads) == pytest.approx(priced, abs=1)


def test_the_same_requests_take_longer_on_fewer_ranks(cost):
    even = cost.step_ns(decodes(*[(64, 4096)] * 8))
    uneven = cost.step_ns(decodes((128, 4096), (0, 128), *[(64, 4096)] * 6))
    lone = cost.step_ns(decodes((64, 4096), *[(0, 128)] * 7))
    assert lone < even < uneven


def test_ranks_that_share_a_load_cost_as_ranks_that_have_one_each(cost):
    def busy():
        return RankLoad([(1000, 200)], 40, 40 * 4096, 0, 41)

    (one,), (idle,) = [busy()], decodes((40, 1024))
    shared = cost.step_ns([one, one, idle, one, idle, idle, one, idle])
    own = cost.step_ns(
        [busy() if each in (0, 1, 3, 6) else decodes((40, 1024))[0] for each in range(8)]
    )
    assert shared == own
    assert shared > cost.step_ns([idle] * 8)


def test_attention_of_the_slowest_and_tokens_of_all(cost):
    """A second full rank adds no attention and no padding, only rows of the experts."""
    one = cost.step_ns(decodes((128, 8192), *[(0, 128)] * 7))
    two = cost.step_ns(decodes((128, 8192), (128, 8192), *[(0, 128)] * 6))
    sizes = np.array([128.0 + 7, 256.0 + 6])
    experts = sum(t.count * t.seconds for t in cost.expert_operators(sizes))
    assert two - one == pytest.approx(1e9 * (experts[1] - experts[0]), abs=2)


def test_an_explanation_adds_up(cost):
    ranks = [([(1000, 0)], [4096] * 20), *[([], [2048] * 64)] * 7]
    loads = [
        RankLoad(list(chunks), len(contexts), sum(contexts), 0, len(contexts) + len(chunks))
        for chunks, contexts in ranks
    ]
    told = cost.explain(ranks)
    assert sum(row.seconds for row in told.rows) == pytest.approx(told.seconds)
    assert 1e9 * told.seconds == pytest.approx(cost.step_ns(loads), abs=0.5)
    assert {"dispatch", "combine", "experts"} <= {row.name for row in told.rows}


def test_experts_of_a_gpu_are_the_hits_of_all_ranks_over_eight(cost):
    (table,) = list(cost.expert_operators(np.array([512.0])))
    moe = next(layer.mlp for layer in MODEL.layers if isinstance(layer.mlp, MoeMlp))
    hit = 256 * (1 - (1 - 8 / 256) ** 512) / 8
    weights = hit * sum(part.weight_bytes for part in moe.expert_linears(7168, 1)) / 256
    rows = 8 * 512 / 8
    assert table.bytes[0] == pytest.approx(weights + 2 * rows * (2 * 7168 + 3 * 2048))


def test_tokens_travel_as_the_experts_multiply_them():
    """Small batches go to their experts alone: eight times 7,168 values, fp8 there, bf16 back."""
    network = Network(LINK)
    there, back = expert_exchange(MODEL, EIGHT, np.array([32.0]), network, H200)
    assert there.count == back.count == 58
    assert there.bytes[0] == pytest.approx(7 / 8 * 32 * 8 * 7168)
    assert back.bytes[0] == pytest.approx(2 * there.bytes[0])


def test_split_experts_gather_all_tokens():
    plan = ParallelPlan(tp=1, dp=8, ep=1)
    there, back = expert_exchange(MODEL, plan, np.array([32.0]), Network(LINK), H200)
    assert there.bytes[0] == back.bytes[0] == pytest.approx(7 / 8 * 2 * 7168 * 8 * 32)


def test_memory_holds_experts_once_and_the_rest_once_per_rank():
    routed = sum(
        layer.count * part.weight_bytes
        for layer in MODEL.layers
        if isinstance(layer.mlp, MoeMlp)
        for part in layer.mlp.expert_linears(MODEL.hidden, 1)
    )
    rest = MODEL.weight_bytes() - routed
    ranked = plan_memory(MODEL, H200, EIGHT, LIMITS)
    split = plan_memory(MODEL, H200, ParallelPlan(8), LIMITS)
    assert ranked.weights_bytes == pytest.approx(rest + routed / 8)
    # a latent cache is replicated by tensor parallelism: eight ranks hold eight times as much of it
    assert ranked.kv_bytes_per_token == split.kv_bytes_per_token
    assert 8 * ranked.kv_tokens > 4 * split.kv_tokens


def test_what_cannot_be_is_said():
    dense = load_model("llama-3.1-8b")
    with pytest.raises(InputError, match=r"dp: 2, but llama-3.1-8b has no experts.*replicas: 2"):
        check_layout(dense, H200, ParallelPlan(dp=2))
    with pytest.raises(InputError, match="3 does not divide the 8 GPUs of tp and dp"):
        ParallelPlan(2, 3, 4)
    with pytest.raises(InputError, match="12 GPUs do not fill whole nodes"):
        check_layout(MODEL, H200, ParallelPlan(1, 4, 12))
    with pytest.raises(InputError, match="256 experts"):
        check_layout(MODEL, load_gpu("gb200"), ParallelPlan(1, 24, 24))
    with pytest.raises(ModelDoesNotFitError, match="deepseek-v3 on 2 x h200-sxm"):
        plan_memory(MODEL, H200, ParallelPlan(1, 2, 2), LIMITS)
    overrides = {"model": "mixtral-8x7b", "fleet.pools.main.dp": 4, "fleet.pools.main.ep": 3}
    with pytest.raises(ScenarioError, match="ep: 3 does not divide the 4 GPUs of tp and dp"):
        Scenario.load("quickstart", overrides)


def test_ranks_find_in_a_shared_tier_what_others_have_computed():
    """Eight ranks, in turn: each text of 4,000 tokens is computed once, not by every rank."""
    traffic = {
        "traffic.lengths": {"kind": "fixed", "prompt_tokens": 200, "output_tokens": 20},
        "traffic.prompts": {"kind": "shared-prefix", "prefix_tokens": 4096, "groups": 10},
        "traffic.duration_s": 30,
        "traffic.warmup_s": 0,
        "fleet.pools.main.rank_routing": "round-robin",
    }
    tier = {"name": "store", "scope": "pool", "capacity_bytes": 4e12}
    alone = ls.run("ranks", traffic)
    shared = ls.run("ranks", traffic | {"fleet.pools.main.kv": {"tiers": [tier]}})
    assert shared.metrics["prefix_hit_frac"] > 1.2 * alone.metrics["prefix_hit_frac"]
    assert shared.tiers["loaded_tokens"].sum() > 100_000
