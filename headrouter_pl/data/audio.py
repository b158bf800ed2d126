"""Reading audio files."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headrouter_pl.errors import HeadRouterError

__all__ = ["AudioBytes", "AudioError", "as_samples", "check_audible", "read_audio"]

_SMALLEST = 2.0**-15
"""One step of 16-bit audio: what stays below it throughout is silence."""


class AudioError(HeadRouterError, ValueError):
    """An audio file, or a request for audio, that cannot be used."""


@dataclass(frozen=True)
class AudioBytes:
    """An audio file in memory.

    Attributes:
        data: What the file holds.
        name: What to call it in errors.
    """

    data: bytes
    name: str


def as_samples(audio: Any, name: object) -> np.ndarray:
    """Audio in memory, as it was given, but for its type.

    Args:
        audio: Floating-point samples ``[n]``, as an array or a tensor.
        name: What to call it in errors.

    Returns:
        float32 array ``[n]``; ``audio`` itself, if it is one.

    Raises:
        AudioError: If it is something else, or holds NaN or infinite samples; it names the audio, and says what it is.
    """
    samples = audio.detach().cpu() if isinstance(audio, Tensor) else audio
    if isinstance(samples, Tensor):
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()  # NumPy has no bfloat16
    if not isinstance(samples, np.ndarray):
        what = type(audio).__name__
    elif samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        what = f"{samples.dtype} {list(samples.shape)}"
    elif not np.isfinite(samples := samples.astype(np.float32, copy=False)).all():
        what = "NaN or infinite in places"
    else:
        return samples
    raise AudioError(f"{name}: its audio is {what}; in memory, give float32 [n] at the processor's rate")


def check_audible(samples: np.ndarray, name: object) -> None:
    """Refuses silence.

    Raises:
        AudioError: If no sample reaches one step of 16-bit audio; it names the audio.
    """
    if not samples.size or float(np.abs(samples).max()) < _SMALLEST:
        raise AudioError(f"{name} is silent: no sample reaches {_SMALLEST:.6f} of full scale")


def read_audio(path: str | os.PathLike[str] | AudioBytes, sampling_rate: int = 16_000) -> np.ndarray:
    """Read an audio file as one channel at one sampling rate.

    Channels are averaged, then resampled with soxr. Amplitudes are kept as recorded (full scale = 1).

    Args:
        path: a file that libsndfile reads (wav, flac, ogg, mp3, ...), or one in memory.
        sampling_rate: rate of the result, in Hz.

    Returns:
        float32 array of shape `[samples]`.

    Raises:
        AudioError: the file is missing, unreadable or empty, or holds NaN or infinite samples; the message
            names it. Also when `sampling_rate` is not positive or soundfile or soxr is not installed.
    """
    source: Path | io.BytesIO
    if isinstance(path, AudioBytes):
        source, name = io.BytesIO(path.data), path.name
    else:
        source = Path(path)
        name = str(source)
    if sampling_rate <= 0:
        raise AudioError(f"got sampling_rate={sampling_rate}, expected a positive number of Hz")
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise AudioError(
            f"reading {name} needs soundfile and soxr ({error}): pip install 'headrouter-pl[eval]'"
        ) from error
    if isinstance(source, Path) and not source.is_file():
        raise AudioError(f"no audio file at {name}")
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{name} cannot be read as audio: {error}") from error
    if samples.size == 0:
        raise AudioError(f"{name} is empty: no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds NaN or infinite samples; repair or leave out this file")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
        if mono.size == 0:
            raise AudioError(f"{name} is empty at {sampling_rate} Hz ({len(samples)} samples at {rate} Hz)")
    return np.ascontiguousarray(mono, dtype=np.float32)
