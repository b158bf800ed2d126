"""Head-weight profiles."""

from headrouter_pl.profiles.head_profile import SHIPPED, TYPES, HeadProfile
from headrouter_pl.profiles.lookup import find_shipped, fingerprint

__all__ = ["SHIPPED", "TYPES", "HeadProfile", "find_shipped", "fingerprint"]
