"""Drum samples of the drum machine Hydrogen."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

# Looked up with "KIT/SAMPLE". Claps, shakers, sticks, bells and electronic noises are neither drum nor cymbal.
_RULES: Rules = (
    (r"empty|rumpf|/VP Click|/[xy]FX|trimo|fxshake", ""),
    (r"/.*cow_?bell|/agogo|_cb\d*$|/.*mc_cb|/CB2?_\d|(dununba|kenkeni|sangban)\d bell|glass|tri(angle)?$", ""),
    (r"clap|click|stick|tambour|clave|wood|maraca|shaker|snap|whistle|misc", ""),
    (r"/.*(cra_|china|hhat|hh|crash|ride|cymbal|splash|hat)", "cymbal"),
    (r"/paistebell|/(rd2?|hh[23]?)_\d|/(hho|hhc|chh|ohh|cc|ho|hh|hh_p|rc)[-_ ]?\d*$", "cymbal"),
    (r"808_(hat|cymbal)|24ride", "cymbal"),
    (r"/.*(kick|snare|tom|bass|conga|bongo|cajon|djembe|drum|dununba|kenkeni|sangban|rimshot)", "drum"),
    (r"/(bd|sn[34]?|tm2?|sd|ft|t[12]|rs|sr|powr_(bd|sn)|hardhse_k.*)[-_ ]?\d*(-\d+)?$", "drum"),
    (r"^GMkit/(kick|snare|tom)|^808", "drum"),
)


# Kits made out of one another's recordings (found by comparing the decoded samples), or by one hand.
_SAME = {
    "GMRockKit": "The Black Pearl 1.0",
    "Millo-Drums_v.1": "Millo",
    "Millo_MultiLayered2": "Millo",
    "Millo_MultiLayered3": "Millo",
}


def _kit(relative: str) -> str:
    kit = relative.partition("/")[0]
    return _SAME.get(kit, kit)


SOURCE = table_source(
    "hydrogen",
    (
        ("hydrogen-drumkits", "2017.09.19~dfsg-1", "hydrogen/data/drumkits"),
        ("hydrogen-data", "1.2.0~beta1+dfsg-1", "hydrogen/data/drumkits"),
    ),
    _RULES,
    "GPL-2.0-or-later AND CC0-1.0 AND CC-BY-3.0 AND CC-BY-SA-3.0",
    content=_kit,
)
