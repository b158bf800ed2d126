"""Animals, work and places of the game Widelands."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, family, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"^sound/animals/bird|critters/duck|^sound/animals/(eagle|chicken)", "bird"),
    (r"^sound/animals/crickets", "insect"),
    (r"^sound/animals/(boar|coyote|moose|stag|wolf)|^sound/farm/(donkey|horse|ox|sheep)", "mammal"),
    (r"^sound/(hammering|smiths|stonecutting|woodcutting|sawmill)/|/(cutting|saw)/|geologist", "tool"),
    (r"^sound/(mill|barbarians)/(mill_turning|weaving|weaver|stonegrind|mortar)", "machine"),
    (r"^sound/metal/furnace", "fire"),
    (r"/(beerbubble|winebubble)|^sound/fisher/", "water"),
    (r"/taverns/", "background"),
)


def _place(relative: str) -> str:
    return "tavern" if "/taverns/" in relative else family(relative.rpartition("/")[2].lower())  # one crowd in all inns


SOURCE = table_source(
    "widelands",
    (("widelands-data", "2:1.1-3", "games/widelands/data"),),
    _RULES,
    "GPL-2.0-or-later",
    content=_place,
)
