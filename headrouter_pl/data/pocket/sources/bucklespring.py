"""Keys of an IBM Model M keyboard."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

_RULES: Rules = ((r"^[0-9a-f]{2}-[01]$", "keyboard"),)


def _key(relative: str) -> str:
    key = relative.partition("-")[0]  # press and release of one key
    return "64" if key in {"5b", "7d"} else key  # three codes, one recording


SOURCE = table_source(
    "bucklespring",
    (("bucklespring-data", "1.4.0-2", "buckle/wav"),),
    _RULES,
    "GPL-2.0-or-later",
    content=_key,
)
