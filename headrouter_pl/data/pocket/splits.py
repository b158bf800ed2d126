"""Which split a clip belongs to: by what is said or sounds, and by who says it; never by clip."""

from __future__ import annotations

import hashlib

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.sealed import is_sealed

__all__ = ["SPLITS", "held_out", "split_of"]

SPLITS = ("train", "validation", "test")

_SHARES = {"test": 0.15, "validation": 0.07}

VOICES: dict[str, str] = {
    "hedgewars/British": "test",
    "hedgewars/Surfer": "test",
    "asterisk/July": "test",
    "asterisk/Armelle": "test",
    "klettres/en": "test",
    "klettres/en_GB": "test",
    "saytime/man": "test",
    "tuxpaint/nl": "test",
    "kajongg/female2": "test",
    "hedgewars/Robot": "validation",
    "klettres/de": "validation",
    "tuxpaint/en": "validation",
}
"""Voices held out altogether -> split: unseen speakers for code words, phrases, gender and same-or-different."""

CODE_VOICES: dict[str, str] = {
    "asterisk/Allison": "test",
    "asterisk/Carlo": "test",
    "asterisk/June": "validation",
    "tuxpaint/en_GB": "validation",
}
"""Voices whose code words alone are held out; their prompts are split by prompt."""


def held_out(content: str) -> str:
    """Split of a content (a phrase, an object, a prompt, a kit), decided by its name alone.

    Args:
        content: As in :attr:`Clip.content`; empty means that nothing is held out for it.

    Returns:
        ``"train"``, ``"validation"`` or ``"test"``.
    """
    if not content:
        return "train"
    share = int(hashlib.sha256(f"pocket:{content}".encode()).hexdigest()[:8], 16) / 16**8
    if share < _SHARES["test"]:
        return "test"
    return "validation" if share < sum(_SHARES.values()) else "train"


def split_of(clip: Clip) -> str:
    """The one split in which a clip may be heard.

    The more withheld of what its content and its voice say: test before validation before train. A clip of an unseen
    voice that says a trained phrase is in test, and so is one of a trained voice that says an unseen phrase; the
    tasks choose among them (:mod:`headrouter_pl.data.pocket.questions`). The name of an object is held out in one
    language at a time. Synthetic speech is for training only.

    Returns:
        ``"sealed"``, or one of :data:`SPLITS`.
    """
    if is_sealed(clip.key):
        return "sealed"
    if clip.voice.startswith("synthetic/"):
        return "train"
    content = f"{clip.content}:{clip.language}" if clip.item else clip.content
    voice = VOICES.get(clip.voice, CODE_VOICES.get(clip.voice, "train") if clip.code else "train")
    return max(held_out(content), voice, key=SPLITS.index)
