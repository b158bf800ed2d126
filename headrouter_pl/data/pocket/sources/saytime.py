"""The speaking clock of saytime: English numbers by one man."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import NUMBERS, find, words

__all__ = ["SOURCE"]

PACKAGE = "saytime"
SAYS = {"am": "a m", "pm": "p m", "oclock": "o'clock"}


def index(root: Path) -> Iterator[Clip]:
    """Clips of the numbers and words; a man by pitch (110 to 140 Hz in unsealed clips)."""
    for key, path in find(root, "saytime", ".au", PACKAGE):
        code = path.stem if path.stem in NUMBERS["English"] else ""
        said = NUMBERS["English"].get(code) or SAYS.get(path.stem) or words(path.stem)
        yield Clip(
            key=key,
            package=PACKAGE,
            kind="speech",
            content="" if code else f"saytime:{path.stem}",
            voice="saytime/man",
            gender="man",
            language="English",
            text=said,
            english=said,
            code=code,
            licence="GPL-1.0-or-later",
        )


SOURCE = Source("saytime", {PACKAGE: "1.0-35+b1"}, index)
