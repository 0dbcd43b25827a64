"""The documents speak of what is there: links, paths, modules."""

import re

import module_map
import pytest
from blocks import CHECKOUT

PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("traces/*.md")])
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:llmsim|tests|docs|scenarios|profiles|traces)/[\w./-]+)`")
ELSEWHERE = {
    "tests/unit/test_best_of.py",  # the reader of CONTRIBUTING.md writes it
    "llmsim/_data",  # in a wheel
}


def text(name):
    return (CHECKOUT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    said = page.read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(said) if not (page.parent / link).exists()]
    missing += [path for path in _PATH.findall(said) if not (CHECKOUT / path).exists()]
    assert set(missing) <= ELSEWHERE


def anchors(page):
    """Return what headings of a page are called in links, as GitHub makes it."""
    bare = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_lead_to_headings(page):
    said = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)#:\s]*\.md)?#([^)]+)\)", said)
    missing = [
        f"{name}#{anchor}"
        for name, anchor in found
        if anchor not in anchors(page.parent / name if name else page)
    ]
    assert missing == []


def test_architecture_is_short():
    assert len(text("ARCHITECTURE.md").splitlines()) <= 150


def test_the_module_map_is_what_the_modules_say():
    assert set(module_map.ROOMS) == module_map.folders()
    assert module_map.PAGE.read_text() == module_map.page(), "call tests/api/module_map.py"


def test_the_ladder_is_that_of_the_contracts():
    page = text("ARCHITECTURE.md")
    drawn = page[page.index("```\ncli") : page.index("`kernels/` is")]
    rungs = re.findall(r'^  "(llmsim[^"]*)",$', text("pyproject.toml"), re.MULTILINE)
    for rung in rungs:
        assert f"\n{rung.replace('llmsim.', '')}" in drawn


def test_the_docs_index_names_every_page():
    index = text("docs/README.md")
    pages = [path.name for path in PAGES if path.parent.name == "docs" and path.name != "README.md"]
    assert all(f"]({name})" in index for name in pages)


def test_the_changelog_has_its_three_headings():
    unreleased = text("CHANGELOG.md").split("\n## ")[1]
    headings = re.findall(r"^### (.*)$", unreleased, re.MULTILINE)
    assert headings == ["Changes results", "Changes API", "Internal"]


def test_every_requirement_has_the_tests_it_names():
    rows = [row for row in text("docs/requirements.md").splitlines() if row.startswith("| **")]
    assert len(rows) >= 12
    for row in rows:
        files = row.split("|")[2].split(";")
        assert files
        for words in files:
            path, *names = re.findall(r"`([^`]+)`", words)
            assert names, row
            assert [name for name in names if f"def {name}(" not in text(path)] == []
