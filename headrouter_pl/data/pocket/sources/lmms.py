"""Drum and instrument samples of the music workstation LMMS."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"/(kick04|wind_chimes01|harpsichord01)$", ""),  # broken as installed
    (r"^drums/(crash|hihat|ride)|^beats/rave_hihat", "cymbal"),
    (r"^drums/(bassdrum|kick|snare|tom|rim|nasty_(snare|rim))|^beats/rave_(kick|snare)", "drum"),
    (r"^effects/explode", "explosion"),
    (r"^misc/(dong|metalish_dong)", "bell"),
    (r"^instruments/church_organ", "instrument:organ"),
    (r"^instruments/(piano)", "instrument:piano"),
    (r"^instruments/steel_guitar01|^latin/latin_guitar", "instrument:guitar"),
    (r"^instruments/cello", "instrument:cello"),
    (r"^instruments/flute", "instrument:flute"),
    (r"^instruments/trumpet", "instrument:trumpet"),
    (r"^instruments/violin", "instrument:violin"),
    (r"^misc/(applause|raving_crowd)", "background"),
)

SOURCE = table_source("lmms", (("lmms-common", "1.2.2+dfsg1-6", "lmms/samples"),), _RULES, "GPL-2.0-or-later")
