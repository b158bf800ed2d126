"""Head-weight profiles."""

from headrouter_pl.profiles.head_profile import SHIPPED, HeadProfile
from headrouter_pl.profiles.lookup import find_shipped, fingerprint
from headrouter_pl.task_types import TYPES

__all__ = ["SHIPPED", "TYPES", "HeadProfile", "find_shipped", "fingerprint"]
