"""Animal calls and other effects of the stamps of Tux Paint (not the spoken names)."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = (
    (r"_desc(_|$)|^symbols/|santahat|dreydl|gift", ""),
    (r"^animals/birds/(heron_greatblue_flying|nandou)", ""),  # wings; silence
    (r"^animals/birds/", "bird"),
    (r"^animals/mammals/aquatic/(whale|orca|dolphin)|^animals/mammals/giraffe|rabbit$", ""),  # not known by ear
    (r"^animals/mammals/|halloween/blackcat", "mammal"),
    (r"^animals/insects/xanthia", ""),
    (r"^animals/insects/", "insect"),
    (r"music/string/cello", "instrument:cello"),
    (r"music/string/violin", "instrument:violin"),
    (r"percussion/cymbal", "cymbal"),
    (r"percussion/drum", "drum"),
    (r"vacuum_cleaner|washing-machine|bathyscape", "machine"),
    (r"household/toilet", "water"),
    (r"tools/(hammer|saw|mallet)", "tool"),
    (r"fireworks", "explosion"),
    (r"lightningbolt", "thunder"),
    (r"firetruck", "horn or siren"),
)


# Stamps that share a recording.
_SAME = {"badger": "beaver", "mountaingoat": "ram"}


def _object(relative: str) -> str:
    stem = relative.rpartition("/")[2].lower()
    name = stem.partition("_")[0].rstrip("0123456789")  # pig, pig_golden, pig_golden2: one recording
    return _SAME.get(name, name)


SOURCE = table_source(
    "tuxpaint",
    (("tuxpaint-stamps-default", "2022.06.04-1", "tuxpaint/stamps"),),
    _RULES,
    "GPL-2.0-only",
    content=_object,
)
