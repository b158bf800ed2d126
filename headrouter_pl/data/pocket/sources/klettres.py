"""Letters and syllables of KLettres in twenty languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import LANGUAGES, find, latin_letter, letter_content

__all__ = ["SOURCE"]

PACKAGE = "klettres-data"
FOLDER = "klettres"
SOUND = re.compile(r'<sound\s+name="([^"]*)"\s+file="([^"]+)"')
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# From the pitch of unsealed clips, where it is plainly that of one grown-up.
GENDERS = {
    "cs": "woman",
    "de": "woman",
    "en": "man",
    "en_GB": "woman",
    "fr": "man",
    "hu": "man",
    "it": "woman",
    "ml": "man",
    "nb": "woman",
    "nds": "man",
    "nl": "woman",
    "ru": "woman",
    "uk": "woman",
}
# English syllables that are words; the others ("aw", "ch", "th") are only sounds.
NO_WORD = frozenset({"aw", "ch", "ck", "ee", "oo", "ou", "ow", "ph", "qu", "sh", "th", "wh", "ng", "oi", "ai", "ea"})


def index(root: Path) -> Iterator[Clip]:
    """Clips that a language's list names."""
    base = root / "usr/share" / FOLDER
    names = {
        f"usr/share/{FOLDER}/{file}": name
        for listing in sorted(base.glob("*/sounds.xml"))
        for name, file in SOUND.findall(COMMENT.sub("", listing.read_text(encoding="utf-8")))
    }
    for key, path in find(root, FOLDER, ".ogg", PACKAGE):
        if key not in names:
            continue
        name, code = names[key], path.parent.parent.name
        language, letter = LANGUAGES[code], path.parent.name == "alpha"
        said = language == "English" and (letter or name.lower() not in NO_WORD)
        yield Clip(
            key=key,
            package=PACKAGE,
            kind="speech",
            content=letter_content(name.lower()) if letter else f"syllable:{name.lower()}",
            voice=f"klettres/{code}",
            gender=GENDERS.get(code, ""),
            language=language,
            text=name if letter else name.lower(),
            english=name.lower() if said else "",
            code=latin_letter(name) if letter else "",
            licence="GPL-2.0-or-later",
        )


SOURCE = Source("klettres", {PACKAGE: "4:22.12.3-1"}, index)
