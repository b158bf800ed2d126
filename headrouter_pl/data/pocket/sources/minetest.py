"""Sounds of Minetest: doors, steps, digging, fire, water."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"env_sounds_water|default_water_footstep", "water"),
    (r"footstep", "footsteps"),
    (r"door_(open|close)|fencegate", "door"),
    (r"fire_(fire|large|small)|default_furnace", "fire"),
    (r"tnt_explode", "explosion"),
    (r"default_dig_(choppy|cracky|metal)", "tool"),
)

SOURCE = table_source(
    "minetest",
    (("minetest-data", "5.6.1+dfsg+~1.9.0mt8+dfsg-2", "games/minetest/games/minetest_game/mods"),),
    _RULES,
    "CC-BY-SA-3.0 AND CC-BY-3.0",
)
