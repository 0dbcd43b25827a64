"""Every key of a card as Markdown, as it stands in ``docs/gallery-cards.md``."""

from __future__ import annotations

from pydantic import BaseModel

from llmsim.gallery import card
from llmsim.gallery.tables import markdown

_SECTIONS: dict[str, type[BaseModel]] = {
    "The card": card.Card,
    "`paper`": card.Paper,
    "`baseline`, `treatment`: an arm": card.Arm,
    "Every regime": card.Regime,
    "`bands`, `losses`": card.Band,
    "`moved`": card.Moved,
    "`nulls`": card.Null,
    "`headlines`": card.Headline,
    "`sweeps`": card.Sweep,
    "`ablations`": card.Ablation,
    "`knobs`": card.Knob,
}


def keys_markdown() -> str:
    """Return a table of keys per section; a key in bold must be there."""
    parts = []
    for title, model in _SECTIONS.items():
        inherited = set(card.Regime.model_fields) if model is not card.Regime else set()
        rows = []
        for name, item in model.model_fields.items():
            if name in inherited and issubclass(model, card.Regime):
                continue
            shown = f"**`{name}`**" if item.is_required() else f"`{name}`"
            rows.append((shown, (item.description or "").replace("\n", " ")))
        parts.append(f"### {title}\n\n{markdown(('key', 'meaning'), rows)}")
    return "\n\n".join(parts)


def with_keys(text: str) -> str:
    """Return the page with its tables of keys made anew, between its two marks."""
    begin, end = "<!-- keys -->", "<!-- end of keys -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{keys_markdown()}\n\n{end}{tail}"
