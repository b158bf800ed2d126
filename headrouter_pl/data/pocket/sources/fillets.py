"""Dialogues of Fish Fillets NG in Czech and Dutch, with their texts and an English translation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._text import LANGUAGES, find

__all__ = ["SOURCE"]

FOLDER = "games/fillets-ng"
PACKAGES = {"cs": "fillets-ng-data-cs", "nl": "fillets-ng-data-nl"}
STRING = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(rf"dialogId\({STRING},\s*{STRING},\s*{STRING}\)\s*dialogStr\({STRING}\)")
# The two fish are a woman and a man in both languages by the game's cast, and by the pitch of unsealed clips.
GENDERS = {"small": "woman", "big": "man"}


def dialogs(path: Path) -> dict[str, tuple[str, str, str]]:
    """Lines of a script: name -> speaker, English, text."""
    if not path.is_file():
        return {}
    found = LINE.findall(path.read_text(encoding="utf-8", errors="replace"))
    return {name: (font.removeprefix("font_"), *map(unescape, (english, text))) for name, font, english, text in found}


def unescape(text: str) -> str:
    """A Lua string without backslashes, on one line."""
    return " ".join(re.sub(r"\\(.)", lambda match: " " if match[1] == "n" else match[1], text).split())


def index(root: Path) -> Iterator[Clip]:
    """Clips of spoken lines; noises (``-x-``) and lines without a text are left out."""
    script = root / "usr/share" / FOLDER / "script"
    known: dict[tuple[str, str], dict[str, tuple[str, str, str]]] = {}
    clips = []
    for language, package in PACKAGES.items():
        for key, path in find(root, f"{FOLDER}/sound", f"{language}/*.ogg", package):
            room = path.parent.parent.name
            if (room, language) not in known:
                known[room, language] = dialogs(script / room / f"dialogs_{language}.lua")
            line = known[room, language].get(path.stem)
            if line is None or "-x-" in path.stem or not line[2]:
                continue
            speaker, english, text = line
            clips.append(
                Clip(
                    key=key,
                    package=package,
                    kind="speech",
                    content=f"fillets:{room}",
                    voice=f"fillets/{language}/{speaker}",
                    gender=GENDERS.get(speaker, ""),
                    language=LANGUAGES[language],
                    text=text,
                    english=english,
                    room=f"fillets/{room}",
                    licence="GPL-2.0-only",
                )
            )
    yield from sorted(clips, key=lambda clip: clip.key)


SOURCE = Source("fillets", {package: "1.0.1-1.1" for package in ("fillets-ng-data", *PACKAGES.values())}, index)
