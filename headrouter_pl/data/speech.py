"""Recorded speech for demonstrations, out of the pip package `moonshine-voice`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.wheels import fetch_members

__all__ = ["SAMPLING_RATE", "SPEECH_CLIPS", "demo_speech", "speech_files"]

SAMPLING_RATE = 16_000
"""Hz, of everything that this module returns."""

_REQUIREMENT = "moonshine-voice==0.1.5"  # MIT
# The wheel is made for one platform; only its recordings are read, so every machine takes this one.
_PLATFORM = "manylinux_2_34_x86_64"

SPEECH_CLIPS: dict[str, str] = {
    "moonshine_voice/assets/two_cities.wav": ("f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e"),
    "moonshine_voice/assets/beckett.wav": "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
    "moonshine_voice/assets/endgame_nagg_nell.wav": (
        "78f44dc6d3da32ecab0c37f391700f0569f4612b8e0be2ecbaf33e1d3d566474"
    ),
}
"""Path inside the wheel -> sha256, in the order of joining: 44.4 s, 10.0 s and 28.3 s of English speech.

The package's other recordings are left out: two are sealed (see `headrouter_pl.data.sealed`), one is a chime.
"""

_PAUSE = 0.5  # seconds of silence between joined clips


def demo_speech(
    seconds: float | None = None, cache: Path | None = None, progress: bool = True
) -> tuple[np.ndarray, int]:
    """English speech of any length.

    Up to 44.4 s it is the beginning of one reader's `two_cities.wav`. Beyond, the clips of `SPEECH_CLIPS` are
    joined in order, each brought to the first one's RMS level (it is 4 and 20 dB below the others) and
    followed by half a second of silence; the whole, 84.1 s, repeats as often as needed.

    Args:
        seconds: length wanted; None for `two_cities.wav` in full.
        cache: where the recordings are kept; `headrouter_pl.wheels.cache_root()` if None.
        progress: show the progress of a download (20 MB, once).

    Returns:
        float32 samples of shape `[round(seconds * 16000)]`, and the sampling rate, 16000 Hz.

    Raises:
        AudioError: `seconds` is not a positive finite number (of at least one sample).
        WheelError: the recordings can be neither found nor fetched, or fail verification.
    """
    if seconds is not None and not (math.isfinite(seconds) and round(seconds * SAMPLING_RATE) >= 1):
        raise AudioError(f"got seconds={seconds}, expected a positive number of seconds, or None")
    paths = speech_files(cache, progress)
    first = read_audio(next(iter(paths.values())), SAMPLING_RATE)
    if seconds is None:
        return first, SAMPLING_RATE
    wanted = round(seconds * SAMPLING_RATE)
    if wanted <= len(first):
        return first[:wanted].copy(), SAMPLING_RATE
    pause = np.zeros(round(_PAUSE * SAMPLING_RATE), dtype=np.float32)
    pieces = []
    for path in paths.values():
        clip = read_audio(path, SAMPLING_RATE)
        pieces += [clip * np.float32(_rms(first) / _rms(clip)), pause]
    return np.resize(np.concatenate(pieces), wanted), SAMPLING_RATE


def speech_files(cache: Path | None = None, progress: bool = True) -> dict[str, Path]:
    """The recordings of `SPEECH_CLIPS` that are not sealed, in that order; see `demo_speech`."""
    clips = {key: digest for key, digest in SPEECH_CLIPS.items() if not is_sealed(key)}
    found = fetch_members(_REQUIREMENT, clips, cache, progress, platform=_PLATFORM)
    return {key: found[key] for key in clips}


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
