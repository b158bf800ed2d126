"""Audio put together from windows: what the scene says stands where the frames are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrouter_pl.data.pocket.compositions import WindowPool
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import role_of
from headrouter_pl.data.pocket.windows import FRAMES_PER_SECOND, EncodedWindows, draw_sparse_window, draw_window

FRAMES = 750


@pytest.fixture
def pool(tones_library: ClipLibrary, tmp_path: Path) -> WindowPool:
    pools = Pools.of(tones_library, "train")
    return WindowPool([EncodedWindows(pools, 6, 0, tmp_path, draw) for draw in (draw_window, draw_sparse_window)])


def test_recordings_stand_where_the_scene_says(pool: WindowPool) -> None:
    """Every frame of a composed audio is a frame of a window; an event's frames must be those of its recording."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        parts = pool.composed(rng, 3, pauses=0.5)
        scene = pool.scene(parts)
        frames = [(window, frame) for window, first, last in parts for frame in range(first, last)]
        assert len(frames) == round(scene.seconds * FRAMES_PER_SECOND)
        assert len(scene.events) == 3
        for event in scene.events:
            window, frame = frames[int((event.start + event.end) / 2 * FRAMES_PER_SECOND)]
            (there,) = [
                e for e in pool.scenes[window].events if e.start <= (frame + 0.5) / FRAMES_PER_SECOND <= e.end + 0.02
            ]
            assert there.clip == event.clip


def test_recordings_of_different_windows_and_voices_that_come_again(pool: WindowPool) -> None:
    rng = np.random.default_rng(1)
    scenes = [(parts, pool.scene(parts)) for parts in (pool.composed(rng, 3, pauses=0.0) for _ in range(200))]
    assert sum(len({window for window, _, _ in parts}) > 1 for parts, _ in scenes) > 100
    clips = [[pool.library.clips[event.clip] for event in scene.events] for _, scene in scenes]
    assert {sum(role_of(clip) in ("sound", "instrument") for clip in heard) for heard in clips} == {0, 1}
    voices = [[clip.voice for clip in heard if clip.voice] for heard in clips]
    assert any(len(set(of)) < len(of) for of in voices)


def test_pauses_hold_no_recording(pool: WindowPool) -> None:
    rng = np.random.default_rng(2)
    paused = 0
    for _ in range(60):
        for part in pool.composed(rng, 4, pauses=1.0):
            events = pool.scene([part]).events
            paused += not events
            assert len(events) <= 1
    assert paused > 60


def test_recordings_spread_over_long_audio(pool: WindowPool) -> None:
    rng = np.random.default_rng(4)
    starts = []
    for _ in range(40):
        parts, places = pool.spread(rng, 3, 120.0)
        lengths = [last - first for _, first, last in parts]
        assert sum(lengths) == 120 * FRAMES_PER_SECOND
        assert places == [0, *np.cumsum(lengths)[:-1]]
        assert all(len(pool.scene([part]).events) <= 1 for part in parts)
        starts.append([event.start for event in pool.scene(parts).events])
    early, middle, late = np.array(starts).T
    assert early.max() < 45  # each in its third, or after a recording
    assert middle.min() > 35
    assert late.min() > 70
    assert early.std() > 5


def test_skipped_quiet_leaves_recordings_where_they_stand(pool: WindowPool) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        parts, places = pool.spread(rng, 4, 200.0, heard=0.1)
        events = [pool.scene([part]).events for part in parts]
        assert sum(map(len, events)) == 4
        ends = [place + last - first for place, (_, first, last) in zip(places, parts, strict=True)]
        assert all(end <= place for end, place in zip(ends, places[1:], strict=False))
        assert ends[-1] <= 200 * FRAMES_PER_SECOND
        quiet = sum(last - first for (_, first, last), there in zip(parts, events, strict=True) if not there)
        recorded = sum(last - first for (_, first, last), there in zip(parts, events, strict=True) if there)
        assert quiet == pytest.approx(0.1 * (200 * FRAMES_PER_SECOND - recorded), abs=5)
        at = [place for place, there in zip(places, events, strict=True) if there]
        assert all(place >= number * (200 * FRAMES_PER_SECOND - recorded) // 4 for number, place in enumerate(at))


def test_no_recording_is_lost_where_they_do_not_fit(pool: WindowPool) -> None:
    parts, _ = pool.spread(np.random.default_rng(6), 5, 1.0)
    assert len(pool.scene(parts).events) == 5


def test_long_audio_needs_sparse_windows(tones_library: ClipLibrary, tmp_path: Path) -> None:
    pool = WindowPool([EncodedWindows(Pools.of(tones_library, "train"), 6, 0, tmp_path, draw_window)])
    with pytest.raises(ValueError, match="no sparse windows"):
        pool.spread(np.random.default_rng(0), 2, 60.0)


def test_whole_windows(pool: WindowPool) -> None:
    rng = np.random.default_rng(3)
    drawn = [pool.whole(rng, 2) for _ in range(60)]
    assert {len(parts) for parts in drawn} == {1, 2}
    assert all(part[1:] == (0, FRAMES) for parts in drawn for part in parts)
    assert sum(all(window in pool.sparse for window, _, _ in parts) for parts in drawn) > 20
