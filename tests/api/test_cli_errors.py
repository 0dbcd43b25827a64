"""docs/errors.md shows each message as it is printed."""

from error_examples import PAGE, render


def test_the_page_shows_every_message_word_for_word(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMSIM_PATH", raising=False)
    page = PAGE.read_text(encoding="utf-8")
    now = render(page, tmp_path)
    assert now == page, "run: python tests/api/error_examples.py"
    assert page.count("```console") >= 12
