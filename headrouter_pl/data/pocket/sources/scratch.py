"""Media library of the children's programming language Scratch 1.4."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"^animal/(bird|duck|goose|owl|rooster)", "bird"),
    (r"^animal/cricket", "insect"),
    (r"^animal/horsegallop", ""),
    (r"^animal/", "mammal"),
    (r"^effects/(bubbles|plunge|ripples|waterdrop|waterrunning)", "water"),
    (r"^effects/door", "door"),
    (r"^effects/bell", "bell"),
    (r"^effects/typing", "keyboard"),
    (r"^effects/(carpassing|motorcycle|sewingmachine)", "machine"),
    (r"^human/footsteps", "footsteps"),
    (r"^human/partynoise", "background"),
    (r"^percussion/(cymbal|ridecymbal)", "cymbal"),
    (r"^instruments/guitar|^music loops/guitar", "instrument:guitar"),
    (r"^instruments/trumpet", "instrument:trumpet"),
    (r"^music loops/xylo", "instrument:xylophone"),
    (r"^music loops/drum|^percussion/drum", "drum"),
)

SOURCE = table_source("scratch", (("scratch", "1.4.0.6~dfsg1-6.1", "scratch/Media/Sounds"),), _RULES, "CC-BY-SA-3.0")
