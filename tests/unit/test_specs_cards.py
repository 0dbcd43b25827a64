"""GPU, link and price cards: every number sourced, every fault reported at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmsim.core.errors import CardError, InputError
from llmsim.core.paths import find_data, list_data
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    gpu_names,
    link_names,
    load_gpu,
    load_link,
    load_prices,
    offers_of,
    price_of,
)
from llmsim.specs.price import ACCELERATORS


def card_text(name: str) -> str:
    path = find_data("profiles", "gpus", f"{name}.yaml")
    assert path is not None
    return path.read_text()


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_number_has_unit_and_source(name: str) -> None:
    card = load_gpu(name)
    rows = card.rows()
    assert len(rows) > 60
    assert all(row.unit and row.source.strip() for row in rows)
    assert card.name == name
    assert load_link(card.link).bytes_per_s > 0
    assert load_link(card.host_link).bytes_per_s > 0
    assert card.power.idle_w < card.power.memory_w < card.power.compute_w <= card.power.cap_w


@pytest.mark.parametrize("name", link_names())
def test_every_link_number_has_unit_and_source(name: str) -> None:
    card = load_link(name)
    assert all(row.unit and row.source.strip() for row in card.rows())
    assert all(prior.bus_bytes_per_s <= card.bytes_per_s for prior in card.all_reduce)


@pytest.mark.parametrize("name", gpu_names())
def test_fewer_bits_are_never_slower(name: str) -> None:
    peaks = load_gpu(name).peak_flops_per_s
    for ladder in (("fp32", "bf16", "fp8", "fp4"), ("bf16", "int8", "int4")):
        known = [peaks[dtype] for dtype in ladder if dtype in peaks]
        assert known == sorted(known)
    if "int4" in peaks:
        assert peaks["int4"] <= 2 * peaks["int8"] * 1.001


def test_derived_int4_peaks_are_their_generations_rates() -> None:
    """Operations per clock and SM of a relative whose sheet states them; clocks are the sheets'."""

    def rate(name: str, clock_hz: float) -> float:
        card = load_gpu(name)
        return card.peak_flops_per_s["int4"] / card.sm_count / clock_hz

    assert rate("rtx-4090", 2.52e9) == pytest.approx(4096, rel=1e-3)
    assert rate("l4", 2.04e9) == pytest.approx(4096, rel=1e-3)
    assert rate("a40", 1.74e9) == pytest.approx(4096, rel=1e-3)
    assert rate("a10g", 1.71e9) == pytest.approx(2048, rel=1e-3)


def test_start_set() -> None:
    gpus = {"a100-80gb-sxm", "h100-sxm", "h200-sxm", "l40s", "b200", "mi300x"}
    assert gpus <= set(gpu_names())
    links = {"nvlink3", "nvlink4", "nvlink5", "xgmi", "pcie-gen4", "pcie-gen5", "ib-ndr", "ib-hdr"}
    assert links <= set(link_names())
    assert gpus <= {card.gpu for card in load_prices()} <= set(gpu_names())


# names that public measurements give these GPUs
MEASURED = {
    "A100-40G": "a100-40gb-sxm",
    "A100-80G": "a100-80gb-sxm",
    "B200": "b200",
    "B300": "b300",
    "GB200": "gb200",
    "GB300": "gb300",
    "NVIDIA H100 80GB HBM3": "h100-sxm",  # as the driver calls it
    "NVIDIA A100-SXM4-80GB": "a100-80gb-sxm",
    "Tesla T4": "t4",
    "GH200-96G": "gh200-96gb",
    "Gaudi2": "gaudi2",
    "H100-80G-SXM": "h100-sxm",
    "H100-NVL": "h100-nvl",
    "H100-PCIe": "h100-pcie",
    "H20": "h20-sxm",
    "H200-141G-SXM": "h200-sxm",
    "H200-NVL": "h200-nvl",
    "H800": "h800-sxm",
    "Intel-PVC-Max1550": "max-1550",
    "L40S": "l40s",
    "MI250": "mi250",
    "MI300X": "mi300x",
    "MI325X": "mi325x",
    "RTX-PRO-6000-96G": "rtx-pro-6000",
    "RTX4090-24G": "rtx-4090",
    "SN40L": "sn40l",
    "V100-16G": "v100-16gb-sxm",
    "V100-32G": "v100-32gb-sxm",
}


@pytest.mark.parametrize(("alias", "name"), MEASURED.items())
def test_aliases_lead_to_cards(alias: str, name: str) -> None:
    assert load_gpu(alias).name == name
    assert load_gpu(alias.lower()) == load_gpu(name)


@pytest.mark.parametrize("folder", ["gpus", "links", "models"])
def test_no_alias_is_claimed_twice(folder: str) -> None:
    names = list_data(f"profiles/{folder}", ".yaml")
    claimed = [name.lower() for name in names]
    for path in names.values():
        claimed += [alias.lower() for alias in yaml.safe_load(path.read_text()).get("aliases", [])]
    assert len(claimed) == len(set(claimed))


def test_a_name_near_an_alias_leads_to_its_card() -> None:
    with pytest.raises(CardError, match=r"Did you mean 'max-1550'\?"):
        load_gpu("Intel-PVC-Max155O")
    with pytest.raises(CardError, match=r"Did you mean 'rtx-4090'\?"):
        load_gpu("RTX4O90")


def test_a_wrong_list_of_aliases_is_a_fault(tmp_path: Path) -> None:
    text = card_text("gaudi2").replace('aliases: ["Gaudi2-96G", "HL-225"]', "aliases: [225]")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(CardError, match="must be a list of texts"):
        load_gpu("./mine.yaml", near=tmp_path)


def test_kernel_terms_of_a_sibling(tmp_path: Path) -> None:
    own, sibling = load_gpu("h100-nvl"), load_gpu("h100-sxm")
    assert own.kernels == sibling.kernels
    assert own.peak_flops_per_s != sibling.peak_flops_per_s
    text = card_text("h100-nvl").replace("kernels_of: h100-sxm", "kernels_of: h1oo-sxm")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(CardError, match=r"mine.yaml:\d+  kernels_of: .*Did you mean 'h100-sxm'"):
        load_gpu("./mine.yaml", near=tmp_path)


def test_terms_of_a_sibling_say_so() -> None:
    sources = {row.field: row.source for row in load_gpu("h100-nvl").rows()}
    own = {row.field: row.source for row in load_gpu("h100-sxm").rows()}
    path = "kernels.gemm.fp8.t0_s"
    assert sources[path] == f"as h100-sxm, the nearest that was measured: {own[path]}"
    assert sources["memory_bytes_per_s"] == "NVIDIA H100 NVL datasheet"


def test_a_number_of_ones_own_beside_a_siblings() -> None:
    """H20's peak is a seventh of H100's: its kernels come closer to it."""
    for engine in ("", "trtllm"):
        own, sibling = (
            load_gpu(name, engine=engine).kernels.gemm["fp8_block"]
            for name in ("h20-sxm", "h100-sxm")
        )
        assert own.roofline.compute_frac > 0.9 > sibling.roofline.compute_frac
        assert replace(own, roofline=sibling.roofline) == sibling
        assert own.roofline.memory_frac == sibling.roofline.memory_frac


def test_an_engine_measured_apart_has_its_own_terms() -> None:
    vllm, trtllm = load_gpu("h100-sxm").kernels, load_gpu("h100-sxm", engine="trtllm").kernels
    assert trtllm.gemm["fp8"].roofline.t0_s > 1.5 * vllm.gemm["fp8"].roofline.t0_s
    assert trtllm.moe["mxfp4"] == vllm.moe["mxfp4"]  # no rows of its own that one could use
    assert load_gpu("h100-sxm", engine="sglang").kernels == vllm
    for sibling in ("h200-sxm", "h20-sxm"):
        assert load_gpu(sibling, engine="trtllm").kernels.gemm["fp8"] == trtllm.gemm["fp8"]
    assert load_gpu("h200-sxm").kernels.gemm != vllm.gemm


def test_a_block_states_its_source_once(tmp_path: Path) -> None:
    block = "kernels:\n  gemm:\n    bf16:\n      source: measured\n"
    leaves = '      t0_s: {value: 1.0e-06, unit: "s"}\n      norm: {value: 2.0, unit: "1"}\n'
    text = card_text("a10").rstrip() + "\n"
    (tmp_path / "mine.yaml").write_text(text + block + leaves)
    sources = {row.field: row.source for row in load_gpu("./mine.yaml", near=tmp_path).rows()}
    assert sources["kernels.gemm.bf16.t0_s"] == sources["kernels.gemm.bf16.norm"] == "measured"
    (tmp_path / "mine.yaml").write_text(
        text + block.replace("      source: measured\n", "") + leaves
    )
    with pytest.raises(CardError, match=r"gemm\.bf16\.norm: has no source"):
        load_gpu("./mine.yaml", near=tmp_path)


@pytest.mark.parametrize("name", gpu_names())
def test_peaks_are_dense(name: str) -> None:
    """8-bit products are at most twice, 4-bit ones at most six times as fast as 16-bit ones.

    A sparse figure among dense ones would double a ratio; Blackwell Ultra's fp4 is the steepest.
    """
    card = load_gpu(name)
    peaks = card.peak_flops_per_s
    assert peaks.get("fp16", peaks["bf16"]) == peaks["bf16"]
    assert peaks.get("fp8", 0.0) <= 2.05 * peaks["bf16"]
    assert peaks.get("int8", 0.0) <= (4.0 if name == "rtx-4090" else 2.05) * peaks["bf16"]
    assert peaks.get("fp4", 0.0) <= 6.0 * peaks["bf16"]
    # bf16 FLOP per byte of memory traffic: a unit mistake would leave this band
    assert 30 < peaks["bf16"] / card.memory_bytes_per_s < 510


def test_datasheet_ratios() -> None:
    h100, h200 = load_gpu("h100-sxm"), load_gpu("h200-sxm")
    assert h100.peak_flops_per_s == h200.peak_flops_per_s
    assert h200.memory_bytes_per_s / h100.memory_bytes_per_s == pytest.approx(4.8 / 3.35)
    assert h100.compute_dtype("fp8") == "fp8"
    assert load_gpu("a100-80gb-sxm").compute_dtype("fp8") == "bf16"


def test_all_faults_of_a_card_at_once(tmp_path: Path) -> None:
    text = card_text("h100-sxm")
    text = text.replace(
        "memory_bytes_per_s: {value: 3.35e+12", "memory_bytes_per_s: {value: 3.35e12"
    )
    text = text.replace('sm_count: {value: 132, unit: "1"', 'sm_count: {value: 132, unit: "SM"')
    text = text.replace("cache_bytes:", "cash_bytes:")
    text = text.replace("launches: {value: 1", "launches: {value: 3")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CardError) as caught:
        load_gpu("./mine.yaml", near=tmp_path)
    faults = {fault.path: fault for fault in caught.value.faults}
    assert {
        "memory_bytes_per_s",
        "sm_count",
        "cache_bytes",
        "cash_bytes",
        "kernels.mixed_attention.launches",
    } == set(faults)
    assert faults["memory_bytes_per_s"].where.endswith("mine.yaml:5")
    assert "cache_bytes" in faults["cash_bytes"].hint


def test_unsourced_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        card_text("mi300x").replace('source: "AMD Instinct MI300X datasheet"', 'source: ""')
    )
    with pytest.raises(CardError, match="has no source"):
        load_gpu(str(path))


def test_prices(tmp_path: Path) -> None:
    cheapest = price_of("h100-sxm")
    offers = [card for card in load_prices() if card.gpu == "h100-sxm"]
    on_demand = [card.usd_per_gpu_hour for card in offers if card.term == "on-demand"]
    assert cheapest.usd_per_gpu_hour == min(on_demand)
    assert price_of("h100-sxm", "aws").instance == "p5.48xlarge"
    assert price_of("h100-sxm", "aws/reserved").usd_per_gpu_hour == 31.464 / 8
    assert price_of("h100-sxm", "spot").usd_per_gpu_hour < price_of("h100-sxm").usd_per_gpu_hour
    with pytest.raises(CardError, match="Did you mean 'h100-sxm'"):
        price_of("h100")
    with pytest.raises(CardError, match="this cloud has no offer"):
        price_of("l40s", "azure")
    with pytest.raises(CardError, match="Did you mean 'aws/reserved'"):
        price_of("h100-sxm", "aws/reservd")


def test_reserved_prices_are_asked_for_by_cloud_and_length() -> None:
    year, three = (price_of("h100-sxm", f"gcp/reserved-{n}y") for n in (1, 3))
    assert year.usd_per_gpu_hour == pytest.approx(44810.08 / 730 / 8, rel=1e-4)  # USD a month
    assert three.usd_per_gpu_hour == pytest.approx(28371.0 / 730 / 8, rel=1e-4)
    assert price_of("h100-sxm", "gcp/reserved") == three  # the cheapest of whichever length
    assert price_of("h100-sxm", "reserved-1y") == year  # of whichever cloud
    assert price_of("h100-sxm", "reserved").whose == "aws/reserved-block"
    assert (year.whose, year.term) == ("gcp/reserved-1y", "reserved-1y")
    with pytest.raises(CardError, match="Did you mean 'gcp/reserved-1y'"):
        price_of("h100-sxm", "gcp/reserved-1yr")


def test_a_gpu_without_an_offer_on_demand_has_its_other_offers(tmp_path: Path) -> None:
    table = tmp_path / "catalog.csv"
    table.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,ReservedPrice,ReservedFor\n"
        "x,L40S,2,,1.5,1y\n"
        "y,L40S,1,,1.25,\n"
        "z,L40S,1,,1,one year\n"
    )
    with pytest.raises(CardError, match=r"catalog\.csv:4.*ReservedFor.*1y or 30d"):
        load_prices(table)
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    prices = load_prices(table)
    assert [card.term for card in offers_of("L40S", prices)] == ["reserved-1y", "reserved"]
    assert price_of("l40s", "reserved", prices).usd_per_gpu_hour == 0.75
    with pytest.raises(CardError, match="no offer on demand"):
        price_of("l40s", None, prices)


def test_every_price_has_a_day_and_a_source_and_every_accelerator_a_card() -> None:
    prices = load_prices()
    terms = {"on-demand", "spot", "reserved-1y", "reserved-3y", "reserved-block"}
    assert {card.term for card in prices} == terms
    assert len({card.cloud for card in prices}) >= 8
    for card in prices:
        assert card.gpu in gpu_names()
        assert card.source.strip()
        assert "2024-06-01" <= card.date <= "2026-12-31"
        assert 0.1 < card.usd_per_gpu_hour < 20
    assert set(ACCELERATORS.values()) <= set(gpu_names())


def test_a_catalog_of_skypilot_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "mycloud"
    folder.mkdir()
    table = folder / "vms.csv"
    table.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice\n"
        "cpu,,0,4,16,0.1,here,,\n"
        "eight,H100,8.0,128,1600,24,here,,10\n"
        "old,K80,1,4,16,0.5,here,,\n"
    )
    prices = load_prices(table)
    assert [(card.gpu, card.cloud, card.term, card.usd_per_gpu_hour) for card in prices] == [
        ("h100-sxm", "mycloud", "on-demand", 3.0),
        ("h100-sxm", "mycloud", "spot", 1.25),
        ("K80", "mycloud", "on-demand", 0.5),
    ]
    assert price_of("h100-sxm", "mycloud/spot", prices).region == "here"
    assert all(card.date and card.source for card in prices)


def test_a_wrong_catalog_is_named_by_line(tmp_path: Path) -> None:
    table = tmp_path / "catalog.csv"
    table.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,Cloud,Date,Source\n"
        "x,H100,1,-1,here,2026-01-01,me\n"
        "x,H100,1,2,here,soon,me\n"
        "x,H100,1,2,here,2026-01-01,\n"
        "x,H100,0,2,here,2026-01-01,me\n"
        "x,H100,1,,here,2026-01-01,me\n"
        "x,H100,1,nan,here,2026-01-01,me\n"
    )
    with pytest.raises(CardError) as caught:
        load_prices(table)
    lines = [fault.where[-2:] for fault in caught.value.faults]
    assert lines == [":2", ":3", ":4", ":5", ":6", ":7"]
    table.write_text("InstanceType,Accelerator,AcceleratorCount,Price\nx,H100,1,2\n")
    with pytest.raises(CardError, match="AcceleratorName: no such column"):
        load_prices(table)


def test_engine_limits() -> None:
    sizes = EngineLimits(max_num_seqs=256, max_num_batched_tokens=8192).graph_sizes()
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert sizes[-1] == 512
    assert {248, 256, 272} <= set(sizes)
    assert 264 not in sizes
    assert EngineLimits(max_num_seqs=10).graph_sizes() == (1, 2, 4, 8, 16)
    assert EngineLimits(cuda_graphs=False).graph_sizes() == ()
    with pytest.raises(InputError) as caught:
        EngineLimits(max_num_seqs=0, block_tokens=0)
    assert {fault.path for fault in caught.value.faults} == {"max_num_seqs", "block_tokens"}
    with pytest.raises(InputError, match="base_s"):
        HostTerms(base_s=-1.0)
    with pytest.raises(InputError, match="tp"):
        ParallelPlan(tp=0)
