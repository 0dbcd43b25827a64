"""`llmsim list prices`: every offer once, in 80 columns, with what the table lacks said beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmsim.cli.app import app
from llmsim.core.paths import find_data
from llmsim.specs import load_prices, price_of


def call(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result


def test_every_offer_is_listed_once_by_the_word_that_a_scenario_takes() -> None:
    lines = call("list", "prices").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["gpu", "price", "USD/(GPU", "h)", "read", "region"]
    assert len(lines) == 1 + len(load_prices())
    row = next(line.split() for line in lines if line.startswith("h100-sxm") and "gcp/spot" in line)
    assert row == ["h100-sxm", "gcp/spot", "4.424", "2025-03-06", "us-central1"]  # 35.39575 / 8
    for gpu, whose, usd, *_ in (line.split() for line in lines[1:]):
        assert price_of(gpu, whose).usd_per_gpu_hour <= float(usd) + 0.0005  # the cheapest region


def test_scripts_get_all_that_is_known_of_each() -> None:
    found = json.loads(call("list", "prices", "--json").stdout)["prices"]
    assert len(found) == len(load_prices())
    blocks = [one for one in found if one["term"] == "reserved-block" and one["gpu"] == "h100-sxm"]
    assert [one["usd_per_gpu_hour"] for one in blocks] == [31.464 / 8]
    assert blocks[0]["price"] == "aws/reserved-block"
    assert blocks[0]["instance"] == "p5.48xlarge"
    assert blocks[0]["source"].startswith("https://aws.amazon.com/")
    assert json.loads(call("list", "--json").stdout)["prices"] == found


def test_what_is_not_in_the_table_is_said() -> None:
    for words in (("list", "prices"), ("list",), ("show", "price", "l4")):
        talk = call(*words).stderr
        assert "reserved: of aws (capacity blocks) and gcp (for 1 year, for 3 years) only" in talk
        assert "no price: a100-40gb-pcie, a40, gaudi2" in talk
    assert "note" not in call("list", "gpus").stderr


def test_another_table_speaks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "profiles" / "prices"
    folder.mkdir(parents=True)
    (folder / "catalog.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,Cloud,Region,Date\n"
        "big,H100,8,16,mine,hall 2,2026-01-02\n"
    )
    monkeypatch.setenv("LLMSIM_PATH", str(tmp_path))
    assert find_data("profiles", "prices", "catalog.csv") == folder / "catalog.csv"
    result = call("list", "prices")
    row = " ".join(result.stdout.splitlines()[1].split())
    assert row == "h100-sxm mine 2.000 2026-01-02 hall 2"
    assert len(result.stdout.splitlines()) == 2
    assert "reserved: of no cloud in this table" in result.stderr
    assert "read 2026-01-02 to 2026-01-02" in result.stderr
    assert "hall 2, read 2026-01-02" in " ".join(call("show", "price", "h100-sxm").stdout.split())


def test_a_gpu_without_offers_gets_a_way_out() -> None:
    told = CliRunner().invoke(app, ["show", "price", "a40"])
    assert told.exit_code == 2
    assert "no offer for this GPU. Say what it costs: gpu_price_usd_per_hour" in told.stderr
    assert "Did you mean 'h100-sxm'?" in CliRunner().invoke(app, ["show", "price", "H100"]).stderr
