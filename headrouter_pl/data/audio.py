"""Reading audio files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from headrouter_pl.errors import HeadRouterError

__all__ = ["AudioError", "read_audio"]


class AudioError(HeadRouterError, ValueError):
    """An audio file, or a request for audio, that cannot be used."""


def read_audio(path: str | os.PathLike[str], sampling_rate: int = 16_000) -> np.ndarray:
    """Read an audio file as one channel at one sampling rate.

    Channels are averaged, then resampled with soxr. Amplitudes are kept as recorded (full scale = 1).

    Args:
        path: a file that libsndfile reads (wav, flac, ogg, mp3, ...).
        sampling_rate: rate of the result, in Hz.

    Returns:
        float32 array of shape `[samples]`.

    Raises:
        AudioError: the file is missing, unreadable or empty, or holds NaN or infinite samples; the message
            names it. Also when `sampling_rate` is not positive or soundfile or soxr is not installed.
    """
    path = Path(path)
    if sampling_rate <= 0:
        raise AudioError(f"got sampling_rate={sampling_rate}, expected a positive number of Hz")
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise AudioError(
            f"reading {path} needs soundfile and soxr ({error}): pip install 'headrouter-pl[demo]'"
        ) from error
    if not path.is_file():
        raise AudioError(f"no audio file at {path}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path} cannot be read as audio: {error}") from error
    if samples.size == 0:
        raise AudioError(f"{path} is empty: no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds NaN or infinite samples; repair or leave out this file")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
        if mono.size == 0:
            raise AudioError(f"{path} is empty at {sampling_rate} Hz ({len(samples)} samples at {rate} Hz)")
    return np.ascontiguousarray(mono, dtype=np.float32)
