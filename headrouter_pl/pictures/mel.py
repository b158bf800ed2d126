"""Spectrograms as arrays."""

from __future__ import annotations

import numpy as np

__all__ = ["mel_spectrogram"]


def mel_spectrogram(samples: np.ndarray, sampling_rate: int, *, bands: int = 80, hop: float = 0.02) -> np.ndarray:
    """Log-mel spectrogram in dB below the loudest bin.

    Args:
        samples: float ``[n]``.
        sampling_rate: In Hz.
        bands: Number of mel bands.
        hop: Seconds from frame to frame.

    Returns:
        float array ``[bands, frames]``, from -80 to 0.
    """
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(201, bands, 0.0, sampling_rate / 2, sampling_rate, norm="slaney", mel_scale="slaney")
    decibels = spectrogram(
        samples, window_function(400, "hann"), 400, int(hop * sampling_rate), fft_length=400, power=2.0,
        mel_filters=filters, log_mel="dB", db_range=80.0,
    )  # fmt: skip
    return decibels - decibels.max()
