"""Spoken words of KTuberling (the potato guy): parts and objects in two dozen languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._items import category_of, item_of
from headrouter_pl.data.pocket.sources._text import LANGUAGES, distinct, find

__all__ = ["SOURCE"]

PACKAGE = "ktuberling-data"
FOLDER = "ktuberling/sounds"
SOUND = re.compile(r'<sound\s+name="([^"]+)"\s+file="([^"]+)"')
PREFIX = re.compile(r"^(egypt|moon|pizzeria|robot_workshop|tux|tv|xmas)[-_]|\d$")
# Names of scenes, moods and sounds, of which nobody can say by one word what is said.
NO_ITEM = re.compile(
    r"^(butterflies_|tux-(angry|bow|bullseye|fly|huh|idea|laugh|letter-love|love|note|notes|poison|shoot|sick|stare|wanted"
    r"|what|wow|zzz)|robot_workshop_(base|block|panel|rod)|moon_sign|xmas_(lights|tux)|xmas_ball|tv_(accident"
    r"|breakdown_lorry|lorry_tractor|path|tipper)|(frier|guard|kid|little|maiden|prince|robin|sherif|whitch)-tux|tuberling)"
)
# One recording under two names: it is not known which of them it says.
UNCLEAR = frozenset({"uk/pizzeria_anchovy", "uk/tux-fish"})
SPLIT = {
    "moonwalker": "moonwalker",
    "fallingstar": "falling star",
    "palmtree": "palm tree",
    "fireengine": "fire truck",
    "volley_net": "volleyball net",
}
# From the pitch of unsealed clips, where it is plainly that of one grown-up.
GENDERS = {"de": "man", "ga": "man", "wa": "man", "it": "woman", "nn": "woman", "ro": "woman", "uk": "woman"}


def index(root: Path) -> Iterator[Clip]:
    """Clips that a sound theme lists; a file without an entry there is not known by an English name."""
    base = root / "usr/share" / FOLDER
    names = {
        f"usr/share/{FOLDER}/{file}": name
        for theme in sorted(base.glob("*.soundtheme"))
        for name, file in SOUND.findall(theme.read_text(encoding="utf-8"))
    }
    clips = []
    for suffix in (".ogg", ".wav", ".opus"):
        try:
            found = list(find(root, FOLDER, suffix, PACKAGE))
        except ValueError:
            if suffix == ".ogg":
                raise
            continue  # some releases have ogg alone
        for key, path in found:
            if key not in names or f"{path.parent.name}/{path.stem}" in UNCLEAR:
                continue
            name, language = names[key], path.parent.name
            bare = PREFIX.sub("", PREFIX.sub("", name))
            item = "" if NO_ITEM.match(name) else item_of(SPLIT.get(bare, bare))
            said = item if LANGUAGES[language] == "English" else ""
            clips.append(
                Clip(
                    key=key,
                    package=PACKAGE,
                    kind="speech",
                    content=f"item:{item}" if item else f"ktuberling:{name}",
                    # The Serbian folders hold two spellings of two dialects, by one speaker as far as names tell.
                    voice=f"ktuberling/{language.partition('@')[0]}",
                    gender=GENDERS.get(language, ""),
                    language=LANGUAGES[language],
                    text=said,
                    english=item,
                    item=item,
                    category=category_of(item) if item else "",
                    licence="GPL-2.0-or-later",
                )
            )
    yield from distinct(root, sorted(clips, key=lambda clip: clip.key))


SOURCE = Source("ktuberling", {PACKAGE: "4:22.12.3-1"}, index)
