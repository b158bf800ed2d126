"""Tables in the documentation are those of the JSON files beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from headrouter_pl.cli.evaluate import card
from headrouter_pl.data.audiomarathon import LAYOUTS
from headrouter_pl.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"


def test_the_pocket_card_shows_the_figures() -> None:
    figures = json.loads((DOCS / "data" / "pocket_eval.json").read_text(encoding="utf-8"))
    page = (DOCS / "pocket.md").read_text(encoding="utf-8")
    assert card(figures) in page
    assert figures["command"] in page
    assert f"{figures['questions']} questions" in page


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_evaluation_page_shows_the_registry(name: str) -> None:
    task = TASKS[f"audiomarathon-{name}"]
    row = f"| {name} | `{LAYOUTS[name].name}` | {task.type} | {type(task.metric()).__name__} | {task.max_new_tokens} |"
    assert row in (DOCS / "evaluation.md").read_text(encoding="utf-8").splitlines()


def test_the_evaluation_page_names_files_that_there_are() -> None:
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    for name in re.findall(r"configs/\w+\.yaml", page):
        assert (DOCS.parent / name).is_file(), name
