"""Animals, weapons and weather of the game MegaGlest (its many spoken orders are left out)."""

from __future__ import annotations

import re

from headrouter_pl.data.pocket.sources._table import Rules, family, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"/music/|_(ack|select|sel)\d*[a-z]?$", ""),  # units answer with voices; animals below are the exception
)
_ANIMALS: Rules = (
    (r"/chicken\d*$|chicken_|/(hawk|owl|rooster)$|/eagle_(ack|select|attack|die)", "bird"),
    (r"/(cow|bull|pig|ele|sheep)(_(ack|select|die))?\d+$", "mammal"),
    # Not tilesets/*/wolf and mudchute_cow: recordings that Widelands and Tux Paint have too.
    (r"beehive/", "insect"),
    (r"/(dragon|evil_dragon|behemoth)_(ack|select|attack|die)\d", "monster"),
)
_EVENTS: Rules = (
    (r"commondata/sounds/anvil|worker_(harvest_wood|mine)\d", "tool"),
    # Attacks of swordmen, guards and horsemen are grunts as often as blades: left out.
    (r"/princess/sounds/knife|/arrow_hit", "weapon"),
    (r"battle_machine/sounds/machine_walk|airship_fly|orni_(fly|standing)", "machine"),
    (r"airship_die|machine_die", "explosion"),
    (r"wicker_fire", "fire"),
    (r"/water_sounds/", "water"),
    (r"/(archmage|battlemage|summoner)_(hit|summon)\d|shaman_heal", "magic"),
    (r"tilesets/.*/(day|sunny_day|desertday|night|nightime|rain|wind)$", "background"),
)


def _unit(relative: str) -> str:
    stem = family(relative.rpartition("/")[2].lower())
    return re.sub(r"_(ack|attack|build|die|fly|harvest_wood|hit|mine|select|standing|summon|walk)$", "", stem)


SOURCE = table_source(
    "megaglest",
    (("megaglest-data", "3.13.0-3", "games/megaglest"),),
    _ANIMALS + _RULES + _EVENTS,
    "CC-BY-SA-3.0",
    content=_unit,
)
