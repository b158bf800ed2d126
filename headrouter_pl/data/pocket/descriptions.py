"""What is heard in a scene, in words: for training alone, where it says much in few tokens."""

from __future__ import annotations

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import LANGUAGES, ROLE_LABEL, heard, is_named, role_of, spoken_text, voice_name
from headrouter_pl.data.pocket.scenes import Scene

__all__ = ["DESCRIBE", "describe"]

DESCRIBE = "Describe what is heard, in order."
"""The prompt that a description answers."""

_WORDS = 6  # of a text, at most
_EVENTS = 8  # of a description, at most


def describe(scene: Scene, library: ClipLibrary) -> str:
    """Names every recording of a scene, in time order: who speaks, in which language, what; or what sounds.

    Returns:
        For example ``"woman, Allison, English: seven; bird; man, Russian: bread"``; empty if there is nothing, or too
        much.
    """
    if len(scene.events) > _EVENTS:
        return ""
    said = [_phrase(heard(library, event), library.cut[event.clip]) for event in scene.events]
    return "; ".join(text or "sound" for text in said)


def _phrase(clip: Clip, cut: bool) -> str:
    role = role_of(clip)
    label = getattr(clip, ROLE_LABEL[role]) if role in ROLE_LABEL else ""
    if clip.kind != "speech":
        return label
    text = label or ("" if cut else spoken_text(clip))
    who = [clip.gender, voice_name(clip) if is_named(clip.voice) else "", clip.language * (clip.language in LANGUAGES)]
    named = ", ".join(name for name in who if name) or "voice"
    return f"{named}: {text}" if text and len(text.split()) <= _WORDS else named
