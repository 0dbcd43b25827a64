"""``docs/gallery.md`` and ``docs/bands.md``, made of cards and their committed results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmsim.gallery.reading import TREATMENT, exhibits, read_exhibit
from llmsim.gallery.results import load_results
from llmsim.gallery.scoring import Standing, stand, told_band
from llmsim.gallery.tables import (
    ABLATION_HEAD,
    COUNTER_HEAD,
    GAIN_HEAD,
    LIST_HEAD,
    ablation_rows,
    counter_rows,
    gain_rows,
    list_row,
    markdown,
    metric_told,
    regime_lines,
)

HEAD: Final = """\
# Gallery of published systems

Made by `llmsim gallery --docs docs`; do not edit. Each system stands against the best public
alternative under the same seeds, with the load normalised to each seed's knee. A gain above 1 means
that the system is better; the interval is Student's 95% interval over the logarithms of the paired
ratios. `holds`: every seed in the band, every null at nothing, a headline of the published size
(below 2x: gain - 1 within a factor of 2; above: ratio within a factor of 1.6). What `differs`, or
holds only `partly`, is kept as it is. How to write a card: [gallery-cards.md](gallery-cards.md);
bands that were moved: [bands.md](bands.md).
"""

BANDS_HEAD: Final = """\
# Bands that were moved

Made by `llmsim gallery --docs docs`; do not edit. A band is what was expected before anything was
run. One that was wrong may move, with the arithmetic or the ablation that explains it; it is then
set on seeds 1 to 3 and tested on seeds 4 to 8.
"""

BANDS_OF_TESTS: Final = """\
One band is of a test, not of a card. A prompt of 8,000 tokens in chunks of 512, beside 32 requests
that decode, was to have its first token after 1.25 times what it takes whole (Llama-3.1-8B, A100).
That is what Sarathi-Serve says of a prompt alone (Yi-34B on two A100), and alone it holds: 1.20
there, 1.249 for the 8B. Beside decodes it cannot: they take 32 of the 512 tokens, which makes 17
steps of 16 (a factor of 512 / 480), and their attention and LM head, 17 x 2.6 ms, are 8% of the
0.54 s of a whole prompt. The new band is 1.25 x 512 / 480 + 0.08 = 1.42; 1.36 is what comes out
(`tests/laws/test_reservations.py`).
"""


def standings(prove: bool = False) -> list[Standing]:
    """Return where every shipped system stands by its committed results.

    Parameters
    ----------
    prove : bool
        Also load every scenario that the cards ask for.

    Raises
    ------
    GalleryError
        If a card is wrong.
    """
    found = []
    for folder in exhibits().values():
        exhibit = read_exhibit(folder, prove)
        found.append(stand(exhibit, load_results(folder, exhibit.name)))
    return sorted(found, key=lambda each: each.exhibit.name)


def gallery_page(shown: Sequence[Standing]) -> str:
    """Return the text of ``docs/gallery.md``."""
    parts = [HEAD, markdown(LIST_HEAD, [list_row(each) for each in shown]), ""]
    for each in shown:
        parts += section(each)
    return "\n".join(parts).rstrip() + "\n"


def section(standing: Standing) -> list[str]:
    """Return a system as paragraphs of Markdown."""
    card = standing.exhibit.card
    paper = card.paper
    code = f"; [code]({paper.code})" if paper.code else ""
    parts = [
        f"## {card.title}",
        "",
        f"[{paper.title}]({paper.url}), {paper.where}{code}. `llmsim gallery run "
        f"{standing.exhibit.name}`",
        "",
        card.mechanism.strip(),
        "",
        f"- Baseline: {card.baseline.label}. Treatment: {card.treatment.label}.",
        f"- Compared: {_compared(standing)}.",
        f"- Answers: {card.quality.strip()}",
    ]
    parts += [f"- {note.strip()}" for note in card.notes]
    if card.micro:
        parts.append(f"- By hand: {', '.join(f'`{test}`' for test in card.micro)}.")
    parts.append("")
    if standing.results is None:
        return [*parts, "No results yet.", ""]
    parts += [markdown(GAIN_HEAD, gain_rows(standing)), ""]
    for name, (verdict, why) in standing.sweeps().items():
        if verdict:
            parts += [f"Sweep `{name}`: {verdict}; {why}.", ""]
    parts += [f"- `{name}`: {told}" for name, told in regime_lines(standing)]
    parts.append("")
    if card.ablations:
        parts += [markdown(ABLATION_HEAD, ablation_rows(standing)), ""]
    if card.knobs:
        rows = [
            (name, str(knob.value), knob.origin, knob.note) for name, knob in card.knobs.items()
        ]
        parts += [markdown(("knob", "value", "origin", "note"), rows), ""]
    folded = markdown(COUNTER_HEAD, counter_rows(standing))
    parts += ["<details><summary>Beside the ratios</summary>", "", folded, "", "</details>", ""]
    return parts


def _compared(standing: Standing) -> str:
    told = dict.fromkeys(metric_told(setting) for setting in standing.exhibit.settings())
    return "; ".join(told)


def bands_page(shown: Sequence[Standing]) -> str:
    """Return the text of ``docs/bands.md``."""
    rows = []
    for each in shown:
        card = each.exhibit.card
        for name, band in (card.bands | card.losses).items():
            if band.moved is not None:
                score = each.treatment(name)
                rows.append(
                    (
                        each.exhibit.name,
                        name,
                        told_band(band.moved.old),
                        told_band(band.band),
                        "–" if score is None else f"{score.told}; {score.verdict}",
                        band.moved.why.strip().replace("\n", " "),
                    )
                )
    if not rows:
        return f"{BANDS_HEAD}\nNone has been moved.\n\n{BANDS_OF_TESTS}"
    head = ("system", "regime", "old", "new", f"{TREATMENT} on seeds 4 to 8", "why")
    return f"{BANDS_HEAD}\n{markdown(head, rows)}\n\n{BANDS_OF_TESTS}"
