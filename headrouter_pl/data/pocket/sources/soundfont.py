"""Instruments of two General MIDI soundfonts, playing short tunes that are made up here."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.sources._sf2 import open_soundfont
from headrouter_pl.data.pocket.sources._table import check_peak, package_folder

__all__ = ["SOURCE"]

_VARIANTS = 24  # a multiple of the registers
_REGISTERS = ("low", "middle", "high")
_FONTS = (
    ("FluidR3_GM", "fluid-soundfont-gm", "MIT"),
    ("TimGM6mb", "timgm6mb-soundfont", "GPL-2.0-only"),
)
# Instrument -> its General MIDI programs (from 0), lowest and highest key of its tunes, and whether it plays chords.
_INSTRUMENTS: dict[str, tuple[tuple[int, ...], int, int, bool]] = {
    "piano": ((0, 1), 45, 84, True),
    "harpsichord": ((6,), 48, 84, True),
    "xylophone": ((13,), 65, 96, False),
    "organ": ((16, 18, 19), 45, 81, True),
    "accordion": ((21, 23), 53, 84, True),
    "harmonica": ((22,), 60, 84, False),
    "guitar": ((24, 25), 40, 76, True),
    "violin": ((40,), 57, 88, False),
    "cello": ((42,), 36, 65, False),
    "harp": ((46,), 48, 84, True),
    "trumpet": ((56, 59), 55, 82, False),
    "tuba": ((58,), 29, 55, False),
    "saxophone": ((64, 65, 66), 49, 78, False),
    "clarinet": ((71,), 52, 82, False),
    "flute": ((73,), 62, 93, False),
    "sitar": ((104,), 48, 76, False),
    "banjo": ((105,), 50, 79, True),
    "bagpipe": ((109,), 55, 77, False),
}
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_RHYTHMS = ((2, 2, 2, 2), (1, 1, 2, 1, 1, 2), (3, 1, 3, 1), (1, 1, 1, 1, 1, 1, 2), (4, 2, 2), (2, 1, 1, 4), (3, 3, 2))
_CHORD_SHAPES = ((0, 2, 4), (0, 2, 4, 7), (0, 4, 7))


def _index(root: Path) -> Iterator[Clip]:
    folder = package_folder(root, "sounds/sf2", " or ".join(package for _, package, _ in _FONTS))
    fonts = [(font, package, licence) for font, package, licence in _FONTS if (folder / f"{font}.sf2").is_file()]
    if not fonts:
        raise AudioError(f"no soundfont in {folder}: install {' or '.join(package for _, package, _ in _FONTS)}")
    clips = [
        Clip(
            key=f"usr/share/sounds/sf2/{font}.sf2!{program}/{variant}",
            package=package,
            kind="sound",
            content=f"{font}:{program}:{_REGISTERS[variant % len(_REGISTERS)]}",
            instrument=instrument,
            licence=licence,
        )
        for font, package, licence in fonts
        for instrument, (programs, _, _, _) in _INSTRUMENTS.items()
        for program in programs
        for variant in range(_VARIANTS)
    ]
    yield from sorted(clips, key=lambda clip: clip.key)


def _tune(key: str, instrument: str, variant: int) -> list[tuple[float, float, tuple[int, ...]]]:
    """Notes (start in seconds, length in seconds, keys) of the tune of the clip `key`."""
    # Seeded with an integer: the same on every machine. A tune of its own for every clip: were it shared by the
    # soundfonts, a tune learnt by heart would give the instrument away.
    rng = random.Random(zlib.crc32(key.encode()))
    _, low, high, chords = _INSTRUMENTS[instrument]
    register = variant % len(_REGISTERS)
    third = (high - low) / len(_REGISTERS)
    tonic = round(low + third * register + rng.random() * third * 0.5)
    beat = 0.14 + 0.12 * rng.random()
    degree, start = 0, 0.0
    strum = chords and rng.random() < 0.5
    notes: list[tuple[float, float, tuple[int, ...]]] = []
    for beats in _RHYTHMS[int(rng.random() * len(_RHYTHMS))]:
        shape = _CHORD_SHAPES[int(rng.random() * len(_CHORD_SHAPES))] if strum else (0,)
        pitches = tuple(tonic + 12 * ((degree + step) // 7) + _SCALE[(degree + step) % 7] for step in shape)
        keys = {pitch - 12 * max(0, -((high - pitch) // 12)) for pitch in pitches}  # fold what lies above the range
        notes.append((start, beats * beat * 0.95, tuple(sorted(keys))))
        start += beats * beat
        degree = min(max(degree + int(rng.random() * 7) - 3, -1), 6)
    return notes


def _read(root: Path, clip: Clip) -> np.ndarray:
    archive, _, member = clip.key.partition("!")
    program, _, variant = member.partition("/")
    font = open_soundfont(root / archive)
    notes = _tune(clip.key, clip.instrument, int(variant))
    tail = 0.3
    sound = np.zeros(int((notes[-1][0] + notes[-1][1] + tail) * SAMPLING_RATE) + 1, dtype=np.float32)
    for start, seconds, keys in notes:
        for key in keys:
            note = font.play(int(program), key, seconds, SAMPLING_RATE, tail)
            first = int(start * SAMPLING_RATE)
            part = sound[first : first + len(note)]
            part += note[: len(part)]
    peak = float(np.abs(check_peak(sound, clip.key)).max())
    return np.asarray(sound * (0.5 / peak), dtype=np.float32)


SOURCE = Source("soundfont", {"fluid-soundfont-gm": "3.1-5.3", "timgm6mb-soundfont": "1.3-5"}, _index, _read)
