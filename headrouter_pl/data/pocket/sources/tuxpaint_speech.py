"""Spoken names of Tux Paint's stamps: objects, letters and numbers in a dozen languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._items import category_of, item_of
from headrouter_pl.data.pocket.sources._text import LANGUAGES, NUMBERS, distinct, find, latin_letter

__all__ = ["SOURCE"]

PACKAGE = "tuxpaint-stamps-default"
FOLDER = "tuxpaint/stamps"
NAME = re.compile(
    r"^(?P<stem>.+?)(?P<desc>_desc)?"
    r"(?:_(?P<language>be|bg|ca|da|de|el|en_GB|es|fr|it|ja|ko|lt|ml|nb|nl|nn|pt_BR|pt|ro|ru|sl|sv|zh_tw))?$"
)
LETTER = re.compile(r"^([A-Za-z])_(filled|outline)$")

# By the speakers' names in the change log (be, bg, ca, da, el, en_GB, es, fr), else by the pitch of unsealed clips,
# where it is plainly that of one grown-up. Bare numbers have other speakers; of those only en_GB is known.
GENDERS = {"bg": "man", "ca": "man", "da": "man", "fr": "man", "nl": "man", "ru": "man"} | {
    "be": "woman",
    "el": "woman",
    "es": "woman",
    "ro": "woman",
}


@cache
def texts(path: Path) -> dict[str, str]:
    """Descriptions of a stamp by language code; empty if there is no such file."""
    if not path.is_file():
        return {}
    first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    found = {"en": first.strip()}
    for line in others:
        language, _, text = line.partition(".utf8=")
        found[language.strip()] = text.strip()
    return found


def label(root: Path, key: str, path: Path) -> Clip | None:
    """The clip of a file, None for a noise."""
    match = NAME.match(path.stem.removesuffix(".ogg"))
    assert match is not None
    stem, language, bare = match["stem"], match["language"] or "en", not match["desc"]
    folder = path.parent.relative_to(root / "usr/share" / FOLDER).as_posix()
    number = stem if folder == "symbols/math" and stem in NUMBERS["English"] else ""
    letter = folder.startswith("symbols/alphabets")
    if bare and not number and not (letter and language == "en_GB"):  # other bare letters are German ones
        return None
    known, name = texts(path.with_name(f"{stem}.txt")), LANGUAGES[language]
    text, gloss, code = known.get(language, ""), known.get("en", ""), number
    if number:
        text, gloss = NUMBERS.get(name, {}).get(number, text), NUMBERS["English"][number]
    elif bare and (spelled := LETTER.match(stem)):  # the description beside it says more: "The letter B."
        text = code = latin_letter(spelled[1])
        gloss = code.lower()
    elif bare:
        return None
    item = "" if folder.startswith("symbols/") and folder != "symbols/shapes" else item_of(stem, gloss)
    voice = f"{language}-names" if bare and language != "en_GB" else language
    return Clip(
        key=key,
        package=PACKAGE,
        kind="speech",
        content="" if code else f"item:{item}" if item else f"tuxpaint:{gloss.lower() or stem}",
        voice=f"tuxpaint/{voice}",
        gender="man" if voice == "en_GB" else GENDERS.get(voice, ""),
        language=name,
        text=text,
        english=gloss,
        code=code,
        item=item,
        category=category_of(item, folder) if item else "",
        licence="GPL-2.0-only",
    )


def index(root: Path) -> Iterator[Clip]:
    """Clips of the spoken descriptions, and of bare numbers and letters; the stamps' noises are left out."""
    labelled = (label(root, key, path) for key, path in find(root, FOLDER, ".ogg", PACKAGE))
    yield from distinct(root, (clip for clip in labelled if clip is not None))


SOURCE = Source("tuxpaint_speech", {PACKAGE: "2022.06.04-1"}, index)
