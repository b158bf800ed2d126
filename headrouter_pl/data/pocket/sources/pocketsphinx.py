"""Test recordings of PocketSphinx: sentences read from a novel, and names of playing cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import find

__all__ = ["SOURCE"]

PACKAGE = "pocketsphinx-testdata"
FOLDER = "pocketsphinx/test/data"
LINE = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.+)\)")


def index(root: Path) -> Iterator[Clip]:
    """Clips that have a transcript; both speakers are men by pitch (about 100 Hz in unsealed clips)."""
    base = root / "usr/share" / FOLDER
    for folder, listing in (("cards", "cards.transcription"), ("librivox", "transcription")):
        files = list(find(root, f"{FOLDER}/{folder}", ".wav", PACKAGE))
        said = {name: text for text, name in LINE.findall((base / folder / listing).read_text(encoding="utf-8"))}
        for key, path in files:
            yield Clip(
                key=key,
                package=PACKAGE,
                kind="speech",
                content=f"pocketsphinx:{path.stem}",
                voice=f"pocketsphinx/{folder}",
                gender="man",
                language="English",
                text=said[path.stem],
                english=said[path.stem],
                licence="BSD-2-Clause",
            )


SOURCE = Source("pocketsphinx", {PACKAGE: "0.8+5prealpha+1-15"}, index)
