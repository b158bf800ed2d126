"""Mah jongg calls of Kajongg by four people in English and four in German."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import NUMBERS, find

__all__ = ["SOURCE"]

PACKAGE = "kajongg"
SUITS = {"b": "bamboo", "c": "character", "s": "stone"}
HONOURS = {
    "db": "white dragon",
    "dg": "green dragon",
    "dr": "red dragon",
    "we": "east wind",
    "wn": "north wind",
    "ws": "south wind",
    "ww": "west wind",
    "dangerousgame": "dangerous game",
    "mahjongg": "mah jongg",
    "nochoice": "no choice",
    "originalcall": "original call",
    "violatesoriginalcall": "violates original call",
}
TILE = re.compile(r"^([bcs])([1-9])$")


def index(root: Path) -> Iterator[Clip]:
    """Clips of the calls; what is meant stands in `english`, its wording is not known."""
    for key, path in find(root, "kajongg/voices", ".ogg", PACKAGE):
        german = path.parent.parent.name == "de"
        tile = TILE.match(path.stem)
        meaning = f"{SUITS[tile[1]]} {NUMBERS['English'][tile[2]]}" if tile else HONOURS.get(path.stem, path.stem)
        speaker = path.parent.name
        yield Clip(
            key=key,
            package=PACKAGE,
            kind="speech",
            content=f"kajongg:{path.stem}",
            voice=f"kajongg/{'de/' if german else ''}{speaker}",
            gender="woman" if speaker.startswith("female") else "man",
            language="German" if german else "English",
            english=meaning,
            licence="GPL-2.0-or-later",
        )


SOURCE = Source("kajongg", {PACKAGE: "4:22.12.3-1"}, index)
