"""The phrases of the voice packs as the installed engines say them, for training alone: real actors are few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources import hedgewars, synthetic
from headrouter_pl.data.pocket.sources.synthetic import ENGLISH, Voice
from headrouter_pl.data.pocket.splits import split_of

__all__ = ["SOURCE"]

VOICES = (
    *ENGLISH,
    *(
        Voice("espeak-ng", f"{accent}+{variant}", {"f": "woman", "m": "man"}[variant[0]])
        for accent, variants in {
            "en-us": ("f1", "f3", "m1", "m4", "m7"),
            "en-gb-x-rp": ("f2", "f4", "m2", "m6"),
            "en-gb-scotland": ("f5", "m8"),
            "en-029": ("f1", "m3"),
        }.items()
        for variant in variants
    ),
)


def index(root: Path) -> Iterator[Clip]:
    """Every phrase that training has from an actor, by every voice, sorted by key."""
    phrases: dict[str, Clip] = {}
    for clip in hedgewars.index(root):
        if clip.phrase and split_of(clip) == "train":
            phrases.setdefault(clip.phrase, clip)
    clips = [
        replace(synthetic.make(voice, clip.text, english=clip.english), content=clip.content, phrase=clip.phrase)
        for clip in phrases.values()
        for voice in VOICES
    ]
    yield from sorted(clips, key=lambda clip: clip.key)


SOURCE = Source(
    "synthetic_phrases",
    {**hedgewars.SOURCE.packages, **{name: synthetic.PACKAGES[name] for name in ("flite", "espeak-ng")}},
    index,
    synthetic.read,
)
