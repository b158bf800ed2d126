"""Scenes of the demo: recordings out of pip packages, put together, with questions whose right answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.pocket.sources._sf2 import SoundFont
from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.data.speech import SAMPLING_RATE, demo_speech, speech_files
from headrouter_pl.wheels import fetch_members

__all__ = ["DEMO_QUESTIONS", "DEMO_RECORDINGS", "READING_SECONDS", "DemoQuestion", "DemoScene", "demo_scenes"]

READING_SECONDS = 120.0
"""Length of the scene ``"reading"``."""

_TALK = "pyannote/audio/sample/sample.wav"
_WATER = "onsen/assets/water.wav"
_EXPLOSION = "pygame/examples/data/boom.wav"
_SOUNDFONT = "pretty_midi/TimGM6mb.sf2"

DEMO_RECORDINGS: dict[str, tuple[str, str, str, str | None]] = {
    _TALK: (
        "pyannote.audio==3.3.2",
        "MIT",
        "c319b4abca767b124e41432d364fd7df006cb26bb79d09326c487d606a134e6e",
        None,
    ),
    _WATER: ("onsen==0.1.1", "MIT", "43fcbc4689f7187063839aea7c2fa96a64deb925792d2880b3c7ac8ab43a2611", None),
    _EXPLOSION: (
        "pygame-ce==2.5.8",
        "public domain",
        "91fa16b345550c61efd0949ae3a9d76411b2c3bd3e8e97cfabf077d6a340fc5f",
        # Only its recordings are read, so every machine takes this one.
        "manylinux_2_17_x86_64",
    ),
    _SOUNDFONT: (
        "pretty_midi==0.2.11.post0",
        "GPL-2.0-only",
        "82475b91a76de15cb28a104707d3247ba932e228bada3f47bba63c6b31aaf7a1",
        None,
    ),
}
"""Path inside the wheel -> package, licence of the file, sha256, and pip's platform, beside `SPEECH_CLIPS` (MIT).

The soundfont is read by training too; the other recordings are not.
"""

# Clip -> recording, and its first and last second.
_CUTS: dict[str, tuple[str, float, float]] = {
    # "It was the best of times, it was the worst of times", a man.
    "reader": ("moonshine_voice/assets/two_cities.wav", 1.10, 4.80),
    # "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better", a man.
    "actor": ("moonshine_voice/assets/beckett.wav", 0.20, 9.30),
    # Two women on the telephone; which of them speaks when is in the package's sample.rttm.
    "caller": (_TALK, 10.60, 14.45),
    "friend": (_TALK, 21.75, 27.80),
    "water": (_WATER, 10.0, 16.0),
    "explosion": (_EXPLOSION, 0.0, 1.13),
}
# Clip -> General MIDI program from 0, and the tune: keys, each held for half a second.
_TUNES: dict[str, tuple[int, tuple[int, ...]]] = {
    "piano": (0, (60, 64, 67, 72, 67, 64)),
    "violin": (40, (67, 69, 71, 74, 71, 67)),
}
_BEAT = 0.5

# Scene -> clips and the seconds at which they begin. One window of Whisper's encoder each.
_SCENE_SECONDS = 30.0
_SCENES: dict[str, tuple[tuple[str, float], ...]] = {
    "water": (("reader", 2.0), ("water", 8.0), ("friend", 16.0), ("piano", 24.0)),
    "telephone": (("caller", 1.5), ("explosion", 8.0), ("actor", 12.0), ("violin", 24.0)),
}
_LEVEL = 0.05  # RMS of each clip; the room's noise is 34 dB below
_PEAK = 0.9
_NOISE = 0.001
_FADE = 0.02  # seconds


@dataclass(frozen=True, eq=False)
class DemoScene:
    """An audio of the demo.

    Attributes:
        name: As questions call it.
        audio: float32 ``[n]`` at 16 kHz.
        spans: Clip -> its first and last second in the audio.
    """

    name: str
    audio: np.ndarray
    spans: Mapping[str, tuple[float, float]]

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.audio) / SAMPLING_RATE


@dataclass(frozen=True)
class DemoQuestion:
    """A question about a scene.

    Attributes:
        scene: Name of the scene.
        type: ``"semantic"`` or ``"acoustic"``.
        task: Key of :data:`headrouter_pl.data.pocket.questions.QUESTION_TASKS`.
        prompt: The question.
        answer: The right answer.
        options: Answers that the prompt names; empty for none.
        evidence: Clips that must be heard; empty for the whole audio.
        chance: Probability of a blind guess to be right.
    """

    scene: str
    type: str
    task: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    chance: float = 0.0


def _choice(
    scene: str, type_: str, task: str, prompt: str, options: Sequence[str], answer: str, *evidence: str
) -> DemoQuestion:
    prompt = f"{prompt}: {', '.join(options[:-1])} or {options[-1]}?"
    return DemoQuestion(scene, type_, task, prompt, answer, tuple(options), evidence, 1 / len(options))


_GENDERS = ("man", "woman")

DEMO_QUESTIONS: tuple[DemoQuestion, ...] = (
    DemoQuestion(
        "water", "semantic", "transcription", "Transcribe what the first voice says.",
        "it was the best of times it was the worst of times", evidence=("reader",),
    ),
    _choice(
        "water", "acoustic", "sound", "Which kind of sound is heard", ("drum", "bird", "water", "door"), "water",
        "water",
    ),
    _choice(
        "water", "semantic", "phrase", "Which of these is said",
        ("no matter", "the best of times", "good morning", "see you tomorrow"), "the best of times", "reader",
    ),
    DemoQuestion(
        "water", "acoustic", "gender", "Is the last voice a man or a woman?", "woman", _GENDERS, ("friend",), 0.5
    ),
    _choice(
        "water", "acoustic", "instrument", "Which instrument is played", ("flute", "trumpet", "violin", "piano"),
        "piano", "piano",
    ),
    DemoQuestion(
        "telephone", "semantic", "transcription", "Transcribe what the last voice says.",
        "ever tried ever failed no matter try again fail again fail better", evidence=("actor",),
    ),
    _choice(
        "telephone", "semantic", "phrase", "Which of these is said",
        ("try again", "good morning", "see you tomorrow", "the best of times"), "try again", "actor",
    ),
    _choice(
        "telephone", "acoustic", "sound", "Which kind of sound is heard", ("bird", "explosion", "bell", "water"),
        "explosion", "explosion",
    ),
    DemoQuestion(
        "telephone", "acoustic", "first_speaker", "Who speaks first, the man or the woman?", "woman", _GENDERS,
        ("caller", "actor"), 0.5,
    ),
    _choice(
        "telephone", "acoustic", "language", "Which language does the last voice speak",
        ("Czech", "Greek", "English", "Dutch"), "English", "actor",
    ),
    DemoQuestion(
        "telephone", "acoustic", "voice_count", "How many different people speak?", "2", (), ("caller", "actor"), 1 / 3
    ),
    _choice(
        "reading", "semantic", "phrase", "Which of these is said",
        ("good morning", "see you tomorrow", "the spring of hope", "where is the station"), "the spring of hope",
    ),
)  # fmt: skip
"""The demo's questions, worded as in training; the first two are one of each type, about one audio."""


def demo_scenes(
    names: Sequence[str] | None = None, cache: Path | None = None, progress: bool = True
) -> dict[str, DemoScene]:
    """The demo's audio, the same on every machine.

    ``"water"`` and ``"telephone"``, 30 s each, hold two voices, a sound and an instrument in a room's noise;
    ``"reading"`` is 120 s of :func:`demo_speech`. Sealed recordings are refused before they are fetched.

    Args:
        names: Which scenes; all if None. Only their recordings are fetched.
        cache: Where the recordings are kept; `headrouter_pl.wheels.cache_root()` if None.
        progress: Show the progress of downloads (50 MB, once).

    Raises:
        AudioError: A scene is unknown, or a recording sealed or not as long as expected.
        WheelError: A recording can be neither found nor fetched, or fails verification.
    """
    known = (*_SCENES, "reading")
    names = known if names is None else list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in known]:
        raise AudioError(f"the demo has no scene {unknown[0]!r}, only {', '.join(known)}")
    clips: dict[str, np.ndarray] = {}
    scenes: dict[str, DemoScene] = {}
    for name in names:
        if name == "reading":
            audio = demo_speech(READING_SECONDS, cache, progress)[0]
            scenes[name] = DemoScene(name, audio, {})
            continue
        for clip, _ in _SCENES[name]:
            if clip not in clips:
                clips[clip] = _clip(clip, cache, progress)
        scenes[name] = _compose(name, clips)
    return scenes


def _compose(name: str, clips: Mapping[str, np.ndarray]) -> DemoScene:
    rng = np.random.default_rng(list(_SCENES).index(name))
    audio = rng.normal(scale=_NOISE, size=round(_SCENE_SECONDS * SAMPLING_RATE)).astype(np.float32)
    spans = {}
    for clip, at in _SCENES[name]:
        first = round(at * SAMPLING_RATE)
        part = audio[first : first + len(clips[clip])]
        if len(part) < len(clips[clip]):
            raise AudioError(f"the demo's scene {name!r} is too short for its clip {clip!r}")
        part += clips[clip]
        spans[clip] = (at, at + len(part) / SAMPLING_RATE)
    return DemoScene(name, audio, spans)


def _clip(name: str, cache: Path | None, progress: bool) -> np.ndarray:
    """A clip at the level of all, with soft edges."""
    if name in _TUNES:
        sound = _tune(*_TUNES[name], _file(_SOUNDFONT, cache, progress))
    else:
        recording, start, end = _CUTS[name]
        whole = read_audio(_file(recording, cache, progress), SAMPLING_RATE)
        sound = whole[round(start * SAMPLING_RATE) : round(end * SAMPLING_RATE)]
        if len(sound) < 0.95 * (end - start) * SAMPLING_RATE:
            raise AudioError(f"{recording} is {len(whole) / SAMPLING_RATE:.1f} s long, expected {end:.1f} s at least")
    rms = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    peak = float(np.abs(sound).max())
    if rms == 0:
        raise AudioError(f"the demo's clip {name!r} is silent")
    sound = sound * np.float32(min(_LEVEL / rms, _PEAK / peak))
    edge = np.linspace(0, 1, round(_FADE * SAMPLING_RATE), dtype=np.float32)
    sound[: len(edge)] *= edge
    sound[-len(edge) :] *= edge[::-1]
    return np.asarray(sound, dtype=np.float32)


def _tune(program: int, keys: Sequence[int], font: Path) -> np.ndarray:
    tail = 0.3
    # Opened here, not by open_soundfont, which would keep the whole file in memory.
    soundfont = SoundFont(font)
    sound = np.zeros(round((len(keys) * _BEAT + tail) * SAMPLING_RATE) + 1, dtype=np.float32)
    for index, key in enumerate(keys):
        note = soundfont.play(program, key, _BEAT, SAMPLING_RATE, tail)
        first = round(index * _BEAT * SAMPLING_RATE)
        sound[first : first + len(note)] += note
    return sound


def _file(recording: str, cache: Path | None, progress: bool) -> Path:
    if is_sealed(recording):
        raise AudioError(f"{recording} is sealed: it is left for a later evaluation and not opened")
    if recording not in DEMO_RECORDINGS:
        return speech_files(cache, progress)[recording]
    requirement, _, digest, platform = DEMO_RECORDINGS[recording]
    return fetch_members(requirement, {recording: digest}, cache, progress, platform=platform)[recording]
