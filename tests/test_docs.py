"""Tables in the documentation are those of the JSON files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from headrouter_pl.cli.evaluate import card

DOCS = Path(__file__).parent.parent / "docs"


def test_the_pocket_card_shows_the_figures() -> None:
    figures = json.loads((DOCS / "data" / "pocket_eval.json").read_text(encoding="utf-8"))
    page = (DOCS / "pocket.md").read_text(encoding="utf-8")
    assert card(figures) in page
    assert figures["command"] in page
    assert f"{figures['questions']} questions" in page
