"""The shipped cards: right, up to date, and no null regime brings anything."""

from pathlib import Path

import pytest

from llmsim.gallery.keys import with_keys
from llmsim.gallery.page import bands_page, gallery_page, standings
from llmsim.gallery.reading import TREATMENT, exhibits, read_exhibit
from llmsim.gallery.results import load_results
from llmsim.gallery.running import QUICK_GROUPS, QUICK_SEEDS, Order, replay, run_order
from llmsim.gallery.scoring import HOLDS, stand

DOCS = Path(__file__).parents[2] / "docs"
FOLDERS = exhibits()
NAMES = sorted(FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_and_its_scenarios_are_right(name):
    exhibit = read_exhibit(FOLDERS[name])
    for test in exhibit.card.micro:
        # a test, or a file of tests with what they show
        path, _, function = test.partition(":")[0], *test.partition("::")[1:]
        source = (DOCS.parent / path).read_text(encoding="utf-8")
        assert not function or f"def {function.partition('[')[0]}(" in source, test


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_the_card_and_its_nulls_hold(name):
    exhibit = read_exhibit(FOLDERS[name], prove=False)
    results = load_results(FOLDERS[name], name)
    if results is None:
        pytest.skip(f"`llmsim gallery run {name} --save` has not been called yet")
    assert results.stale(exhibit) == [], f"call `llmsim gallery run {name} --save`"
    assert not set(exhibit.card.nulls) & set(results.missing(exhibit)), "a null has not been run"
    assert stand(exhibit, results).broken_nulls == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.many
def test_results_are_those_of_this_code(name):
    """One recorded run of a null, both arms, decides as it did when it was recorded."""
    exhibit = read_exhibit(FOLDERS[name], prove=False)
    results = load_results(FOLDERS[name], name)
    if results is None:
        pytest.skip(f"`llmsim gallery run {name} --save` has not been called yet")
    (setting, *_) = (each for each in exhibit.settings() if each.group == "nulls")
    settled = results.settings[setting.name]
    first = min(row.seed for row in settled.rows)
    rows = [row for row in settled.rows if row.seed == first and row.digest]
    assert rows
    for row in rows:
        told = f"{setting.name}, {row.arm}: call `llmsim gallery run {name} --save`"
        assert replay(exhibit, setting, settled, row) == row.digest, told


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_regime_has_results_of_this_code(name):
    """Another price may change one regime and leave the nulls as they were."""
    exhibit = read_exhibit(FOLDERS[name], prove=False)
    results = load_results(FOLDERS[name], name)
    assert results is not None
    old = []
    for setting in exhibit.settings():
        settled = results.settings[setting.name]
        first = min(row.seed for row in settled.rows)
        (row,) = (row for row in settled.rows if (row.seed, row.arm) == (first, TREATMENT))
        if row.digest and replay(exhibit, setting, settled, row) != row.digest:
            old.append(setting.name)
    assert old == [], f"call `llmsim gallery run {name} --save`"


@pytest.mark.parametrize("name", NAMES)
def test_a_card_keeps_the_rules(name):
    """A timeline by hand, a sweep whose direction is known, five pairs, a cause for every gap."""
    card = read_exhibit(FOLDERS[name], prove=False).card
    results = load_results(FOLDERS[name], name)
    assert results is not None
    assert card.micro
    assert any(sweep.monotone for sweep in card.sweeps.values())
    assert card.ablations or any("ablation" in note for note in card.notes)
    assert card.headlines or any("headline" in note for note in card.notes)
    for settled in results.settings.values():
        assert len({row.seed for row in settled.rows}) >= 5
    standing = stand(read_exhibit(FOLDERS[name], prove=False), results)
    for key, headline in card.headlines.items():
        score = standing.treatment(key)
        assert score is not None
        assert score.verdict == HOLDS or headline.cause, f"{key}: no cause of the difference"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_null_brings_anything_today(name):
    exhibit = read_exhibit(FOLDERS[name])
    order = Order(exhibit, QUICK_SEEDS, (QUICK_GROUPS[1],), ablations=False, jobs=1)
    assert stand(exhibit, run_order(order)).broken_nulls == ()


def test_the_pages_are_made_of_the_results():
    shown = standings()
    for name, text in (("gallery.md", gallery_page(shown)), ("bands.md", bands_page(shown))):
        made = (DOCS / name).read_text(encoding="utf-8")
        assert made == text, f"{name}: call `llmsim gallery --docs docs`"


def test_the_page_about_cards_has_every_key():
    page = (DOCS / "gallery-cards.md").read_text(encoding="utf-8")
    assert page == with_keys(page)
