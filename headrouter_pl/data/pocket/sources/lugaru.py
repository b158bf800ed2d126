"""Sounds of the game Lugaru: steps, blades, dogs, fire."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"^hawk", "bird"),
    (r"^(bark|growl|snarl)", "mammal"),
    (r"^footstep", "footsteps"),
    (r"^(clank|metalhit|swordslice|swordstaff|knife(draw|sheathe|slice))", "weapon"),
    (r"^fire(start)?$", "fire"),
    (r"^(desertambient|wind)$", "background"),
)

SOURCE = table_source("lugaru", (("lugaru-data", "1.2-6", "games/lugaru/Sounds"),), _RULES, "CC-BY-SA-3.0")
