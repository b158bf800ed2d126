"""Sounds of the city simulation LinCity-NG: machines, work and places."""

from __future__ import annotations

from headrouter_pl.data.pocket.sources._table import Rules, table_source

__all__ = ["SOURCE"]

# Harbor holds a recording of Water.
_RULES: Rules = (
    (r"^(blacksmith|monumentconstruction)", "tool"),
    (r"^build", "tool"),
    (r"^firestation", "horn or siren"),
    (r"^firewasteland", "fire"),
    (r"^fire\d", "fire"),
    (r"^rocketexplosion", "explosion"),
    (r"^water\d|^parklandlake", "water"),
    (r"^(industry|railtrain|trafic|mill|powercoal|coalmine|dirttrack|recycle|rockettakeoff|parklandplane)", "machine"),
    (r"^(resid|market|school|shanty|sportscroud)", "background"),
    (r"^(university|commune|green|farm|organicfarm|health)", "background"),
)

SOURCE = table_source(
    "lincity",
    (("lincity-ng-data", "2.9~git20150314-5", "games/lincity-ng/sounds"),),
    _RULES,
    "GPL-2.0-or-later",
)
