"""Scenes: sound stands where the events say, and parts and joins keep the times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headrouter_pl.data.pocket.clips import SAMPLING_RATE
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.scenes import Event, Scene, join, lay_out, render

LENGTHS = (0.5, 1.0, 2.0)


@pytest.fixture
def library(tmp_path: Path) -> ClipLibrary:
    """Three tones of 500, 1000 and 1500 Hz."""
    parts = [
        0.1 * np.sin(2 * np.pi * 500 * (i + 1) * np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE)
        for i, seconds in enumerate(LENGTHS)
    ]
    cuts = np.cumsum([0, *map(len, parts)]).tolist()
    (tmp_path / "clips.i16").write_bytes(np.round(np.concatenate(parts) * 32767).astype("<i2").tobytes())
    spans = [(0, first, last) for first, last in pairwise(cuts)]
    return ClipLibrary([], [], spans, [tmp_path / "clips.i16"], [], [], {}, "tones")


def level(samples: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(samples**2)) + 1e-12))


def quiet(scene: Scene) -> Scene:
    return Scene(scene.seconds, scene.events, scene.murmurs)


@pytest.mark.parametrize("seconds", [None, 8.0, 60.0])
@pytest.mark.parametrize("seed", range(3))
def test_energy_stands_where_events_say(library: ClipLibrary, seconds: float | None, seed: int) -> None:
    scene = lay_out(np.random.default_rng(seed), library, [2, 0, 1], seconds)
    audio = render(quiet(scene), library)
    assert audio.dtype == np.float32
    assert len(audio) == round(scene.seconds * SAMPLING_RATE)
    inside = np.zeros(len(audio), bool)
    for event in scene.events:
        first, last = (round(time * SAMPLING_RATE) for time in (event.start, event.end))
        inside[first:last] = True
        part = audio[first:last]
        assert level(part) == pytest.approx(level(np.array([0.1])) - 3 + event.level, abs=0.2)
        pitch = np.abs(np.fft.rfft(part)).argmax() * SAMPLING_RATE / len(part)
        assert pitch == pytest.approx(500 * (event.clip + 1), abs=3)
    assert not audio[~inside].any()


@pytest.mark.parametrize("seconds", [None, 5.0, 300.0])
def test_events_are_in_order_and_do_not_overlap(library: ClipLibrary, seconds: float | None) -> None:
    for seed in range(20):
        scene = lay_out(np.random.default_rng(seed), library, [0, 1, 2, 0], seconds)
        times = [time for event in scene.events for time in (event.start, event.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= scene.seconds
        assert [event.clip for event in scene.events] == [0, 1, 2, 0]


def test_positions_are_stratified(library: ClipLibrary) -> None:
    for seed in range(20):
        scene = lay_out(np.random.default_rng(seed), library, [0, 0, 0, 0], 40.0)
        assert [int(event.start // 10) for event in scene.events] == [0, 1, 2, 3]


def test_clips_that_do_not_fit_are_refused(library: ClipLibrary) -> None:
    with pytest.raises(ValueError, match=r"3\.00 s do not fit in 2\.90 s"):
        lay_out(np.random.default_rng(0), library, [1, 2], 2.9)


def test_the_same_seed_gives_the_same_audio(library: ClipLibrary) -> None:
    first, again, other = (
        lay_out(np.random.default_rng(seed), library, [0, 1], 40.0, murmurs=[2], backgrounds=[2]) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
    np.testing.assert_array_equal(render(first, library), render(again, library))


def test_background_noise_has_its_level_and_the_clips_bandwidth(library: ClipLibrary) -> None:
    audio = render(Scene(4.0, (), background_level=-10.0, tilt=0.0, seed=1), library)
    assert level(audio) == pytest.approx(-32, abs=0.2)
    power = np.abs(np.fft.rfft(audio)) ** 2
    assert power[np.fft.rfftfreq(len(audio), 1 / SAMPLING_RATE) > 4100].sum() < 1e-3 * power.sum()
    assert level(render(Scene(4.0, (), background=1, background_level=-10.0), library)) == pytest.approx(-32, abs=0.2)


def test_echo_rings_on_and_loud_scenes_do_not_clip(library: ClipLibrary) -> None:
    event = Event(0, 0.0, 0.5)
    ringing = render(Scene(1.0, (event,), echo=0.5, seed=1), library)
    assert level(ringing[8_100:9_000]) > -60
    loud = render(Scene(1.0, (Event(0, 0.0, 0.5, 40.0),)), library)
    assert np.abs(loud).max() == pytest.approx(0.95, abs=1e-3)


def test_part_and_join(library: ClipLibrary) -> None:
    scene = Scene(10.0, (Event(0, 1.0, 1.5), Event(1, 4.0, 5.0), Event(2, 7.0, 9.0)), (Event(0, 2.0, 2.5),))
    part = scene.part(3.0, 8.0)  # the last event is cut off, so it does not belong
    assert part.events == (Event(1, 1.0, 2.0),)
    assert (part.seconds, part.murmurs) == (5.0, ())
    both = join([part, scene])
    assert both.seconds == 15.0
    assert [(event.clip, event.start) for event in both.events] == [(1, 1.0), (0, 6.0), (1, 9.0), (2, 12.0)]
