"""Effects of small packages: Warmux, netPanzer, Search and Rescue, sound-icons, freedesktop."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

# Looked up with the path below the package's folder; the names are so far apart that one table does for all.
_RULES: Rules = (
    (r"^music/|voices/|/misc/|selected|scream|yessir|_(affirm|movout|tarconf)", ""),
    (r"weapons/(explosion|dynamite_exp|riot_bomb_exp)|^expl_", "explosion"),
    (r"weapons/(gun|shotgun|m16)$|^battle_mg", "gunshot"),
    (r"weapons/(flame|blowtorch|embers)", "fire"),
    (r"weapons/aircraft_flying|engine_|^tankidle|^hev(idle|mov|start)|^unitsound", "machine"),
    # thunder_faint is a recording that Scorched 3D has too.
    (r"^thunder_(loud|moderate)", "thunder"),
    (r"^splash_", "water"),
    (r"^door_", "door"),
    (r"^canary", "bird"),
    (r"^piano", "instrument:piano"),
    (r"^guitar", "instrument:guitar"),
    (r"^trumpet", "instrument:trumpet"),
    (r"^violoncello", "instrument:cello"),
    (r"^(xylofon)", "instrument:xylophone"),
    (r"^stereo/bell$", "bell"),
)

SOURCE = table_source(
    "small",
    (
        ("warmux-data", "1:11.04.1+repack2-4", "games/warmux/sound/default"),
        ("netpanzer-data", "0.8.7+ds-4.1", "games/netpanzer/sound"),
        ("searchandrescue-data", "1.3.0-1.1", "games/searchandrescue/sounds"),
        ("sound-icons", "0.1-8", "sounds/sound-icons"),
        ("sound-theme-freedesktop", "0.8-2", "sounds/freedesktop"),
    ),
    _RULES,
    "GPL-2.0-or-later",
    licences={"searchandrescue-data": "GPL-2.0-only", "sound-theme-freedesktop": "CC-BY-SA-3.0 OR GPL-2.0-or-later"},
)
