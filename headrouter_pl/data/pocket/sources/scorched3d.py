"""Sounds of the artillery game Scorched 3D."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"/music/|scream|cheering|text|beep", ""),
    (r"misc/(birdchirp|birds|gull|rooster)", "bird"),
    (r"misc/(cows|moo|dog|sheep|wolf|bats)", "mammal"),
    (r"explosions/(bees|beesting)", "insect"),
    (r"explosions/(thunder|lightning)|misc/thunder", "thunder"),
    (r"misc/(carhorn|firetruck|policecar)", "horn or siren"),
    (r"misc/(cessna|helicopter|apache|f16|f18|jet|t38|factoryloop)|movement/tankmove", "machine"),
    (r"shoot/(machinegun|shotgun|tripleshot)", "gunshot"),
    (r"none/data/wav/explosions/(large|medium|small|xlarge|tank)|apoc/.*explosions/(exp|meteor|tank)", "explosion"),
    (r"explosions/napalm", "fire"),
    (r"misc/splash", "water"),
    (r"misc/(oceanwaves|rain|citysounds|frogs)", "background"),
)

SOURCE = table_source(
    "scorched3d",
    (("scorched3d-data", "44+dfsg-8", "games/scorched3d/data"),),
    _RULES,
    "GPL-2.0-or-later AND CC-BY-SA-3.0",
)
