"""Head-weight profiles."""

from headrouter_pl.profiles.head_profile import SHIPPED, TYPES, HeadProfile

__all__ = ["SHIPPED", "TYPES", "HeadProfile"]
