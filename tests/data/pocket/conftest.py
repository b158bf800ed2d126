"""A library of tones with labels like the real ones, so that nothing needs to be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from headrouter_pl.data.pocket import library as library_module
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import LANGUAGES, SOUNDS
from headrouter_pl.data.pocket.splits import held_out, split_of
from headrouter_pl.data.sealed import is_sealed

PEOPLE = {"Mobster": "man", "Pirate": "man", "Singer": "woman"}  # voices with a name, heard in all splits
LETTERS = "BCDFGHJKLM"
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "golf", "hotel", "india", "juliet", "kilo")


def named(stem: str, wanted: str, split: Callable[[str], str]) -> str:
    """A name with this stem that falls in the split; no digits and single letters, which would make it a spelling."""
    return next(name for i in range(1000) if split(name := f"{stem} {chr(97 + i % 26) * (2 + i // 26)}") == wanted)


def tone(seconds: float, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE)).astype(
        np.float32
    )


def labelled(split: str) -> Iterator[dict[str, str]]:
    """Labels of the clips of a split."""
    coder = {"test": "asterisk/Allison", "validation": "asterisk/June", "train": "asterisk/Menardi"}[split]
    speech = {"kind": "speech"}
    for code in (*map(str, range(10)), *LETTERS, *WORDS):
        yield speech | {"voice": coder, "gender": "woman", "language": "English", "code": code, "text": code}
    for number in range(10):
        phrase = named(f"phrase {chr(65 + number) * 2}", split, held_out)
        for person, gender in PEOPLE.items():
            yield speech | {
                "voice": f"hedgewars/{person}", "gender": gender, "language": "English", "content": phrase,
                "phrase": phrase, "text": phrase, "english": phrase,
            }  # fmt: skip
    for number, language in enumerate(sorted(LANGUAGES)):
        for take in range(3):
            item = named(
                f"thing {chr(97 + take) * 2}{chr(97 + number)}",
                split,
                lambda name, spoken=language: held_out(f"{name}:{spoken}"),
            )
            labels = {"language": language, "voice": f"someone/{language}", "gender": ("man", "woman")[number % 2]}
            yield speech | labels | {
                "content": item, "item": item, "english": item, "category": ("animal", "tool", "food")[take],
            }  # fmt: skip
            line = named(f"Line {chr(97 + take) * 2}{chr(97 + number)}", split, held_out)
            room = {"content": line, "room": "fillets/cave", "english": line}
            yield speech | labels | {"language": "Czech"} | room if number < 4 else speech | labels | {"content": line}
    for take in range(12):
        text = named(f"sentence to write {chr(65 + take) * 2}", split, held_out)
        labels = {"voice": "asterisk/Carlo" if take % 2 else "asterisk/Menardi", "gender": ("woman", "man")[take % 2]}
        yield speech | labels | {"language": "English", "content": text, "text": text, "english": text}
    for sound in sorted(SOUNDS)[:6]:
        for take in range(3):
            yield {"kind": "sound", "sound": sound, "content": named(f"{sound} {take}", split, held_out)}
    for instrument in ("flute", "harp", "piano", "organ"):
        for take in range(3):
            content = named(f"{instrument} {take}", split, held_out)
            yield {"kind": "sound", "instrument": instrument, "content": content}
    yield {"kind": "background", "content": named("rain", split, held_out)}
    if split == "train":
        for voice in ("one", "two"):
            phrase = named("phrase said by a machine", split, held_out)
            labels = {"voice": f"synthetic/{voice}", "language": "English", "phrase": phrase, "text": phrase}
            yield speech | labels | {"content": phrase, "english": phrase}


def tones() -> list[Clip]:
    """All clips, their keys sorted, none of them sealed but those of a last phrase."""
    clips = []
    for split in ("train", "validation", "test"):
        for number, labels in enumerate(labelled(split)):
            key = named(
                f"usr/share/tones/{split}-{number:03}", "open", lambda name: ("open", "sealed")[is_sealed(name)]
            )
            clips.append(Clip(key=key, package="tones", licence="CC0-1.0", **labels))
            assert split_of(clips[-1]) == split, clips[-1]
    for number in range(3):
        key = named(f"usr/share/tones/{number}", "sealed", lambda name: ("open", "sealed")[is_sealed(name)])
        clips.append(
            Clip(key=key, package="tones", kind="speech", voice="hedgewars/Singer", phrase="hush", content="hush")
        )
    return sorted(clips, key=lambda clip: clip.key)


def write_tones(root: Path, clips: list[Clip]) -> None:
    rng = np.random.default_rng(0)
    (root / "usr/share/tones").mkdir(parents=True)
    for clip in clips:
        samples = tone(float(rng.uniform(0.5, 0.9)), float(rng.uniform(200, 2000)))
        soundfile.write(root / clip.key, samples, SAMPLING_RATE, format="WAV")


def source(clips: list[Clip], name: str = "tones") -> Source:
    return Source(name, {}, lambda root: iter(clips))


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed; tests that need packages say which."""

    def query(command: list[str], **options: object) -> object:
        return type("Done", (), {"stdout": "", "returncode": 1})()

    # The library's alone: the synthesizers are run by the same function.
    monkeypatch.setattr(library_module, "subprocess", SimpleNamespace(run=query))


@pytest.fixture(scope="session")
def tones_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tones")
    write_tones(root, tones())
    return root


@pytest.fixture(scope="session")
def tones_library(tones_root: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipLibrary:
    patch = pytest.MonkeyPatch()
    patch.setattr(library_module, "missing_packages", lambda sources: {})
    cache = tmp_path_factory.mktemp("cache")
    library = ClipLibrary.open([source(tones())], root=tones_root, cache=cache, progress=False)
    patch.undo()
    return library
