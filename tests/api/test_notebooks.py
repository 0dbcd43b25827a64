"""Every notebook runs from top to bottom in a kernel of its own, as a reader would run it."""

import io

import pytest
from blocks import CHECKOUT

nbformat = pytest.importorskip("nbformat", reason="needs the extra `dev`")

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def run_notebook(path, name):
    """Return a table that a notebook leaves behind, after all of its cells ran.

    Parameters
    ----------
    path : Path
    name : str
        Of a DataFrame.
    """
    import pandas as pd
    from nbclient import NotebookClient

    book = read(path)
    book.cells.append(nbformat.v4.new_code_cell(f"print({name}.to_json(orient='records'))"))
    client = NotebookClient(book, timeout=1200, resources={"metadata": {"path": str(CHECKOUT)}})
    client.execute()
    (told,) = book.cells[-1].outputs
    return pd.read_json(io.StringIO(told.text), orient="records")


def test_notebooks_are_valid_and_keep_no_outputs():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        book = read(path)
        nbformat.validate(book)
        assert all(not cell.get("outputs") for cell in book.cells), path.name


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_which_layout_wins_depends_on_the_pace_and_the_mix():
    table = run_notebook(CHECKOUT / "notebooks" / "disaggregation.ipynb", "table")
    layouts = ["mixed", "chunked", "pd", "semi-pd"]
    assert (table[layouts] > 0).all(axis=None)
    assert {"chunked", "semi-pd"} <= set(table["best"])
    kept = table.set_index(["mix", "tpot_ms"])
    middle = kept.loc[("long prompts", 10)]
    assert middle["pd"] > max(middle["mixed"], middle["chunked"])
    loose = kept.loc[("long prompts", 40)]
    assert loose["pd"] < max(loose["mixed"], loose["chunked"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_how_many_gpus_are_needed_was_shown_by_simulation():
    path = CHECKOUT / "notebooks" / "how-many-gpus.ipynb"
    evidence = run_notebook(path, "evidence").set_index("stage")
    assert not evidence.loc["naive", "passed"]  # bursts break what an even stream would need
    assert evidence.loc["confirm", "passed"]
    assert evidence.loc["naive", "usd_per_hour"] < evidence.loc["confirm", "usd_per_hour"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_the_first_run_shows_two_fleets_that_keep_the_promise():
    table = run_notebook(CHECKOUT / "notebooks" / "first-run.ipynb", "both.reset_index()")
    kept = table.set_index("metric").loc["slo_attained_frac"]
    assert kept["2 x h100"] > 0.99


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_twice_the_traffic_is_fine_until_it_is_not():
    path = CHECKOUT / "notebooks" / "double-the-traffic.ipynb"
    ladder = run_notebook(path, "ladder.reset_index()").set_index("rate_rps")
    assert ladder.loc[16, "slo_attained_frac"] > 0.95
    assert ladder.loc[80, "slo_attained_frac"] < 0.5
    assert ladder.ttft_p99_s.is_monotonic_increasing


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_a_step_goes_to_weights_first_and_to_kv_later():
    path = CHECKOUT / "notebooks" / "where-a-step-goes.ipynb"
    steps = run_notebook(path, "batches.reset_index()").set_index("index")
    other = "everything else"
    assert steps.loc[1, "attention decode"] < steps.loc[1, other] / 4
    assert steps.loc[256, "attention decode"] > steps.loc[256, other]
    assert steps.output_tokens_per_s.is_monotonic_increasing


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the messaging between kernel and client
def test_the_best_settings_keep_up_and_more_tokens_a_step_stretch_gaps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = run_notebook(CHECKOUT / "notebooks" / "which-settings.ipynb", "table")
    seqs, tokens = "engine.max_num_seqs", "engine.max_num_batched_tokens"
    assert set(table.loc[table[seqs] == 16, "status"]) == {"overloaded"}
    (best,) = table[table["best"]].to_dict("records")
    assert best["status"] in ("feasible", "unsure")
    assert best["itl_p99_s"] <= 0.05
    for _, rows in table[table[seqs] > 16].groupby(seqs):
        assert rows.sort_values(tokens)["itl_p99_s"].is_monotonic_increasing
