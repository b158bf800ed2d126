"""Russian sentences read by one man, the recordings of a Festival voice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import find

__all__ = ["SOURCE"]

PACKAGE = "festvox-ru"
FOLDER = "festival/voices/russian/msu_ru_nsh_clunits"
LINE = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')


def index(root: Path) -> Iterator[Clip]:
    """Clips that have a transcript; a man by pitch (about 140 Hz in unsealed clips)."""
    files = list(find(root, f"{FOLDER}/wav", ".wav", PACKAGE))
    listing = root / "usr/share" / FOLDER / "etc/txt.done.data"
    said = dict(LINE.findall(listing.read_text(encoding="utf-8")))
    for key, path in files:
        if path.stem in said:
            yield Clip(
                key=key,
                package=PACKAGE,
                kind="speech",
                content=f"festvox_ru:{path.stem}",
                voice="festvox/nsh",
                gender="man",
                language="Russian",
                text=said[path.stem].replace("+", ""),  # stress marks
                licence="MIT-Festival",
            )


SOURCE = Source("festvox_ru", {PACKAGE: "0.5+dfsg-6"}, index)
