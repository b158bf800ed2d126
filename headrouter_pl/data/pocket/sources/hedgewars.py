"""Voice packs of Hedgewars: the same shouts by fifteen actors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import distinct, find

__all__ = ["SOURCE"]

PACKAGE = "hedgewars-data"

# Packs that say what their file names say.
ENGLISH = ("British", "Classic", "Default", "Mobster", "Pirate", "Robot", "Singer", "Surfer")
# Not here, so of no known language: Russian, whose files may be English with an accent.
LANGUAGES = dict.fromkeys(ENGLISH, "English") | {
    "Default_es": "Spanish",
    "Default_pl": "Polish",
    "Default_ru": "Russian",
    "Default_uk": "Ukrainian",
    "HillBilly": "English",  # words most things in its own way: no transcripts
    "Russian_pl": "Polish",
}
# The older take of the same actor: some of its files are those of Default.
SAME_VOICE = {"Classic": "Default"}

NO_WORDS = re.compile(r"^(Ow|Ooff|Hmm|Ouch|Poison|Laugh|Firepunch|Jump)")

# One recording under two names: it is not known which of them it says.
UNCLEAR = frozenset({"Classic/Melon", "Classic/Watchthis"})

PHRASES = {
    "Byebye": "bye bye",
    "Comeonthen": "come on then",
    "Cutitout": "cut it out",
    "Enemydown": "enemy down",
    "Firstblood": "first blood",
    "Flyaway": "fly away",
    "Gonnagetyou": "gonna get you",
    "Illgetyou": "i'll get you",
    "Justyouwait": "just you wait",
    "Leavemealone": "leave me alone",
    "Nooo": "no",
    "Ohdear": "oh dear",
    "Runaway": "run away",
    "Sameteam": "same team",
    "Solong": "so long",
    "Takecover": "take cover",
    "Thisoneismine": "this one is mine",
    "Uh-oh": "uh oh",
    "Watchit": "watch it",
    "Watchthis": "watch this",
    "Whatthe": "what the",
    "Yessir": "yes sir",
    "Youllregretthat": "you'll regret that",
}


def label(key: str, path: Path) -> Clip:
    """The clip of a file."""
    pack, phrase = path.parent.name, path.stem
    said = PHRASES.get(phrase, phrase.lower()) if pack in ENGLISH else ""
    return Clip(
        key=key,
        package=PACKAGE,
        kind="speech",
        content=f"hedgewars:{phrase}",
        voice=f"hedgewars/{SAME_VOICE.get(pack, pack)}",
        language=LANGUAGES.get(pack, ""),
        text=said,
        english=said,
        phrase=f"hedgewars/{phrase}" if said else "",
        licence="GFDL-1.3",
    )


def index(root: Path) -> Iterator[Clip]:
    """Clips of the voice packs, without those in which nothing is said.

    Gender stays empty: all packs are cartoon voices, most pitched up (a pitch tracker finds 230 to 360 Hz in each).
    """
    files = find(root, "games/hedgewars/Data/Sounds/voices", ".ogg", PACKAGE)
    known = (
        (key, path)
        for key, path in files
        if not NO_WORDS.match(path.stem) and f"{path.parent.name}/{path.stem}" not in UNCLEAR
    )
    yield from distinct(root, (label(key, path) for key, path in known))


SOURCE = Source("hedgewars", {PACKAGE: "1.0.2-6"}, index)
