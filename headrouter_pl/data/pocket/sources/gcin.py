"""Mandarin syllables of the input method gcin, by two speakers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import find

__all__ = ["SOURCE"]

PACKAGE = "gcin-voice"
# File name -> speaker, gender and licence as the copyright file has them (`3`: its author; `5`: a voice actress, Chu
# Lo). The genders agree with the pitch of unsealed clips.
SPEAKERS = {"3": ("Liu", "man", "GPL-3.0-only OR LGPL-3.0-only"), "5": ("Lo", "woman", "CC-BY-3.0")}


def index(root: Path) -> Iterator[Clip]:
    """Clips of the syllables; the text is their Bopomofo spelling with the tone as a digit."""
    for key, path in find(root, "gcin-voice/ogg", ".ogg", PACKAGE):
        speaker, gender, licence = SPEAKERS[path.stem]
        syllable = path.parent.name
        yield Clip(
            key=key,
            package=PACKAGE,
            kind="speech",
            content=f"mandarin:{syllable}",
            voice=f"gcin/{speaker}",
            gender=gender,
            language="Mandarin",
            text=syllable,
            licence=licence,
        )


SOURCE = Source("gcin", {PACKAGE: "0~20170223-3"}, index)
