"""What must be known of each audio language model family, and the pocket model."""

from headrouter_pl.models.families import FAMILIES, LalmHandle, ModelFamily, find_lalm

__all__ = ["FAMILIES", "LalmHandle", "ModelFamily", "find_lalm"]
