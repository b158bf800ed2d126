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


def test_whole_windows(pool: WindowPool) -> None:
    rng = np.random.default_rng(3)
    drawn = [pool.whole(rng, 2) for _ in range(60)]
    assert {len(parts) for parts in drawn} == {1, 2}
    assert all(part[1:] == (0, FRAMES) for parts in drawn for part in parts)
    assert sum(all(window in pool.sparse for window, _, _ in parts) for parts in drawn) > 20
