"""Samples of the live-coding instrument Sonic Pi."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, family, table_source

__all__ = ["SOURCE"]

# Loops are music and the synthetic basses, glitches and robots are nothing that has a name: left out.
_RULES: Rules = (
    (r"^(drum_cymbal|drum_splash|elec_cymbal)", "cymbal"),
    (r"^(bd_|sn_|tabla_|drum_(bass|heavy|snare|tom|roll))", "drum"),
    (r"^elec_(filt_snare|fuzz_tom|hi_snare|hollow_kick|lo_snare|mid_snare|snare|soft_kick)", "drum"),
    (r"^(perc_bell|elec_bell|elec_chime)", "bell"),
    (r"^perc_door", "door"),
    (r"^misc_crow", "bird"),
    (r"^guit_", "instrument:guitar"),
    (r"^ambi_piano", "instrument:piano"),
    (r"^(ambi_(glass_hum|soft_buzz)|vinyl_hiss)", "background"),
)
# What was recorded in one sitting.
_SETS = ("drum_", "elec_", "tabla_", "guit_", "sn_", "perc_bell")


def _set(relative: str) -> str:
    return next((prefix.rstrip("_") for prefix in _SETS if relative.startswith(prefix)), family(relative))


SOURCE = table_source(
    "sonic-pi",
    (("sonic-pi-samples", "3.2.2~repack-8", "sonic-pi/samples"),),
    _RULES,
    "CC0-1.0",
    content=_set,
)
