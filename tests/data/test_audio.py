"""Reading audio, and the speech for demonstrations (with recordings made up here)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrouter_pl.data import speech
from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.errors import HeadRouterError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_stereo_becomes_mono_at_the_rate_asked_for(tmp_path: Path, rate: int) -> None:
    left = tone(1.0, rate)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], axis=1), rate, subtype="FLOAT")
    got = read_audio(tmp_path / "a.wav", 16_000)
    assert got.dtype == np.float32
    assert got.shape == (16_000,)
    middle = slice(2_000, -2_000)  # away from the resampler's edges
    np.testing.assert_allclose(got[middle], tone(1.0, 16_000, 0.25)[middle], atol=2e-3)


def test_a_file_at_the_right_rate_is_read_as_it_is(tmp_path: Path) -> None:
    given = tone(0.1, 16_000)
    soundfile.write(tmp_path / "a.flac", given, 16_000, subtype="PCM_24")
    np.testing.assert_allclose(read_audio(str(tmp_path / "a.flac")), given, atol=1e-6)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "one.wav", np.zeros(1, dtype=np.float32), 48_000)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        samples = tone(0.1, 16_000)
        samples[7] = value
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    for name, message in (
        ("text", "cannot be read"),
        ("empty", "is empty"),
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
        ("missing", "no audio file"),
        (".", "no audio file"),
    ):
        with pytest.raises(AudioError, match=message) as caught:
            read_audio(tmp_path / f"{name}.wav")
        assert str(tmp_path / f"{name}.wav") in str(caught.value)
        assert isinstance(caught.value, HeadRouterError)
    with pytest.raises(AudioError, match="sampling_rate=0"):
        read_audio(tmp_path / "nan.wav", 0)


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Stand-ins for the three recordings: 2 s quiet, 1 s and 1 s loud, at 48, 16 and 24 kHz."""
    paths: dict[str, Path] = {}
    for key, (seconds, rate, level) in zip(
        speech.SPEECH_CLIPS, ((2, 48_000, 0.02), (1, 16_000, 0.5), (1, 24_000, 0.9)), strict=True
    ):
        paths[key] = tmp_path / Path(key).name
        soundfile.write(paths[key], tone(seconds, rate, level), rate)

    def fetch(requirement: str, members: Any, *args: Any, **kwargs: Any) -> dict[str, Path]:
        assert requirement == "moonshine-voice==0.1.5"
        return {member: paths[member] for member in members}

    monkeypatch.setattr(speech, "fetch_members", fetch)
    return paths


def test_demo_speech_of_any_length(clips: dict[str, Path]) -> None:
    whole, rate = speech.demo_speech()
    assert rate == 16_000
    assert whole.dtype == np.float32
    assert whole.shape == (32_000,)
    short, _ = speech.demo_speech(0.5)
    np.testing.assert_array_equal(short, whole[:8_000])
    long, _ = speech.demo_speech(20.25)
    assert long.shape == (324_000,)
    np.testing.assert_array_equal(long[:32_000], whole)
    once = round((2 + 1 + 1 + 3 * 0.5) * 16_000)
    np.testing.assert_array_equal(long[once : 2 * once], long[:once])
    assert not long[32_000:40_000].any()  # the pause
    assert np.abs(long).max() < 0.03  # the loud clips came down to the quiet one's level


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e-9])
def test_lengths_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(AudioError, match="expected a positive number of seconds"):
        speech.demo_speech(seconds)
