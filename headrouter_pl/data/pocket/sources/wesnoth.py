"""Sound effects of the game The Battle for Wesnoth."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, family, table_source

__all__ = ["SOURCE"]

# Shouts of people (human, elf, dwarf, mermen, witches) are voices, not sounds: they match nothing and are left out.
_RULES: Rules = (
    (r"ambient/birds", "bird"),
    (r"ambient/campfire", "fire"),
    (r"ambient/(morning|night|ship)", "background"),
    (r"ambient/wardrums", "drum"),
    (r"horn-signals/", "horn or siren"),
    (r"^(horse-canter|horse-elf-canter)", ""),  # hooves, not a call
    (r"^(wolf|horse|bat-hit|tusker-(die|hit))", "mammal"),
    (r"^gryphon", "monster"),
    (r"^(orc|goblin|ogre|troll|yeti|zombie|ghoul|lich|naga|skeleton(?!-big-die)|drake-(die|hit)|groan|ugg)", "monster"),
    (r"^(gunshot|thunderstick)", "gunshot"),
    (r"^(axe|bow|club|crossbow|dagger|dart|flail|hatchet|knife|mace|sling|spear|staff|sword|throw|pincers)", "weapon"),
    (r"^(magic|heal|wail|slowed|petrified)", "magic"),
    (r"^(fire|flame-big|melee-fire|torch|dragonstick)", "fire"),
    (r"^lightning", "thunder"),
    (r"^(explosion)", "explosion"),
    (r"^(water-blast)", "water"),
    (r"^bell", "bell"),
)


def _creature(relative: str) -> str:
    stem = family(relative.rpartition("/")[2])
    return stem if stem.startswith("magic-") else stem.partition("-")[0]  # orc-small-die, orc-hit: one actor


SOURCE = table_source(
    "wesnoth",
    (
        ("wesnoth-1.16-data", "1:1.16.9-1", "games/wesnoth/1.16/data/core/sounds"),
        ("wesnoth-1.16-data", "1:1.16.9-1", "games/wesnoth/1.16/sounds"),
    ),
    _RULES,
    "GPL-2.0-or-later",
    content=_creature,
)
