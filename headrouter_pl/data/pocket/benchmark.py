"""The Pocket benchmark: questions about scenes of real recordings, 8 to 300 s long, with where the evidence stands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from headrouter_pl.data.pocket.casting import PEOPLE, Casting
from headrouter_pl.data.pocket.clips import SAMPLING_RATE
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import QUESTION_TASKS, Question
from headrouter_pl.data.pocket.scenes import Scene, render
from headrouter_pl.data.pocket.splits import SPLITS
from headrouter_pl.data.pocket.windows import FRAMES_PER_SECOND
from headrouter_pl.errors import unknown_name
from headrouter_pl.results import json_lines, parse_json_lines
from headrouter_pl.wheels import cache_root

__all__ = ["LENGTHS", "PocketBenchmark", "PocketItem"]

LENGTHS: Mapping[int, int] = {8: 4, 15: 5, 30: 6, 60: 7, 120: 7, 300: 7}
"""Seconds of a scene -> recordings in it, at most."""

SCENES = {"test": 48, "validation": 12, "train": 36, "sealed": 12}
"""Scenes of each length in a split."""

_CONTENT = 0.7  # of the scenes ask what and how; the rest ask who and how many
_RECIPE = 4  # raise it when drawing or rendering changes
_RECORD = "benchmark.json"  # written last: a folder without it is not whole


@dataclass(frozen=True)
class PocketItem:
    """One question of the benchmark.

    Attributes:
        key: ``SPLIT/LENGTH/SCENE/TASK``.
        audio: File name of the scene.
        seconds: Its length.
        task: Key of :data:`QUESTION_TASKS`.
        type: ``"semantic"``, ``"voice"`` or ``"sound"``.
        prompt: The question.
        answer: The right answer.
        options: Answers named in the prompt; empty for open questions.
        chance: Probability of a blind guess to be right.
        evidence_seconds: ``(start, end)`` of every recording that must be heard.
        evidence_tokens: The same as audio tokens, end exclusive.
    """

    key: str
    audio: str
    seconds: float
    task: str
    type: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    chance: float
    evidence_seconds: tuple[tuple[float, float], ...]
    evidence_tokens: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PocketBenchmark:
    """The questions of one split, and where its audio is.

    Attributes:
        folder: Holds the audio (FLAC, 16 kHz), ``items.jsonl`` (:func:`headrouter_pl.data.read_records` reads it with
            ``columns={"task": None, "options": None}``), ``scenes.jsonl`` (where the clips stand in each audio) and
            ``manifest.jsonl`` (the clips: label, licence, split, sha256).
        items: The questions; those of one audio follow each other.
        left_out: Why recordings are not used, as :meth:`ClipLibrary.left_out` tells -> their keys.
    """

    folder: Path
    items: Sequence[PocketItem]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Figures about the split.

        Returns:
            ``"tasks"`` (task -> seconds -> number of questions), ``"audios"``, ``"hours"``, ``"clips"``,
            ``"competing"`` (share of the questions about an audio with two or more speech clips and a sound),
            ``"apart"`` (share of the audios in which semantic and acoustic evidence do not share a recording) and
            ``"uses"`` (how many clips are evidence in one audio, in two, ...).
        """
        kinds = {row["key"]: row["kind"] for row in _lines(self.folder / "manifest.jsonl")}
        scenes = {row["audio"]: row for row in _lines(self.folder / "scenes.jsonl")}
        tasks: dict[str, dict[int, int]] = {task: dict.fromkeys(LENGTHS, 0) for task in QUESTION_TASKS}
        spans: dict[str, dict[bool, set[tuple[float, float]]]] = {}
        evidence: dict[str, set[str]] = {}
        competing = 0
        for item in self.items:
            tasks[item.task][round(item.seconds)] += 1
            events = scenes[item.audio]["events"]
            heard = Counter(kinds[event["clip"]] for event in events)
            competing += heard["speech"] >= 2 and heard["sound"] >= 1
            its_type = spans.setdefault(item.audio, {True: set(), False: set()})
            its_type[item.type == "semantic"].update(item.evidence_seconds)
            for event in events:
                if any(a <= event["start"] and event["end"] <= b for a, b in item.evidence_seconds):
                    evidence.setdefault(event["clip"], set()).add(item.audio)
        return {
            "tasks": {task: counts for task, counts in tasks.items() if any(counts.values())},
            "audios": len(scenes),
            "hours": sum(row["seconds"] for row in scenes.values()) / 3600,
            "clips": len(kinds),
            "competing": competing / max(len(self.items), 1),
            "apart": sum(not found[True] & found[False] for found in spans.values()) / max(len(spans), 1),
            "uses": dict(sorted(Counter(len(audios) for audios in evidence.values()).items())),
        }

    @classmethod
    def open(
        cls,
        split: str = "test",
        *,
        scenes: int | None = None,
        seed: int = 0,
        cache: Path | None = None,
        progress: bool = True,
    ) -> PocketBenchmark:
        """The benchmark, built on first use.

        Args:
            split: ``"test"``, ``"validation"`` or ``"train"``; ``"sealed"`` only by this name.
            scenes: Scenes of each length; :data:`SCENES` if None.
            seed: Of all choices.
            cache: :func:`headrouter_pl.wheels.cache_root` if None.
            progress: Show progress bars.

        Raises:
            AudioError: If packages are missing or no clip of the split fits what a task asks for.
        """
        if split not in (*SPLITS, "sealed"):
            raise unknown_name("split", split, SPLITS)
        library = ClipLibrary.open(cache=cache, sealed=split == "sealed", progress=progress)
        count = SCENES[split] if scenes is None else scenes
        recipe = [_RECIPE, library.name, split, count, seed, dict(LENGTHS)]
        name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
        base = cache_root(cache) / "pocket-benchmark"
        base.mkdir(parents=True, exist_ok=True)
        folder = base / f"{split}-{name}"
        with FileLock(base / f"{folder.name}.lock"):
            if not (folder / _RECORD).is_file():
                _build(library, split, count, seed, folder, progress)
        return cls(folder, [_item(row) for row in _lines(folder / "items.jsonl")], library.left_out())


def _lines(path: Path) -> list[dict[str, Any]]:
    return parse_json_lines(path.read_text(encoding="utf-8"))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(json_lines(rows), encoding="utf-8")


def _item(row: Mapping[str, Any]) -> PocketItem:
    spans = {name: tuple(tuple(span) for span in row[name]) for name in ("evidence_seconds", "evidence_tokens")}
    return PocketItem(**{**row, **spans, "options": tuple(row["options"])})


def _scenes(library: ClipLibrary, split: str, count: int, seed: int) -> Iterator[tuple[str, Scene, list[Question]]]:
    """Name, scene and questions of each audio; the same for the same seed."""
    casting = Casting(library, split)
    for seconds, slots in LENGTHS.items():
        for number, tasks in enumerate(_targets(count)):
            rng = np.random.default_rng([seed, seconds, number])
            yield f"{seconds:03}-{number:03}", *casting.draw(rng, seconds, slots, tasks)


def _build(library: ClipLibrary, split: str, count: int, seed: int, folder: Path, progress: bool) -> None:
    import soundfile

    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    items: list[dict[str, Any]] = []
    scenes: list[dict[str, Any]] = []
    used: set[int] = set()
    try:
        drawn = _scenes(library, split, count, seed)
        bar = tqdm(drawn, total=count * len(LENGTHS), desc=f"{split} scenes", disable=not progress)
        for name, scene, questions in bar:
            soundfile.write(scratch / f"{name}.flac", render(scene, library), SAMPLING_RATE)
            items += [dataclasses.asdict(_as_item(split, name, scene, question)) for question in questions]
            scenes.append({"audio": f"{name}.flac"} | _named(scene, library))
            used.update(event.clip for event in (*scene.events, *scene.murmurs))
            used.update(() if scene.background is None else (scene.background,))
        _write(scratch / "items.jsonl", items)
        _write(scratch / "scenes.jsonl", scenes)
        _write(
            scratch / "manifest.jsonl",
            [
                {name: value for name, value in dataclasses.asdict(library.clips[index]).items() if value}
                | {"split": library.splits[index], "sha256": library.digests[index]}
                for index in sorted(used)
            ],
        )
        (scratch / _RECORD).write_text(json.dumps({"split": split, "seed": seed, "library": library.name}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _named(scene: Scene, library: ClipLibrary) -> dict[str, Any]:
    """The scene as plain values, its clips by their keys."""
    row = scene.to_dict()
    for event in (*row["events"], *row["murmurs"]):
        event["clip"] = library.clips[event["clip"]].key
    row["background"] = None if scene.background is None else library.clips[scene.background].key
    # JSON has no infinity.
    row["background_level"] = scene.background_level if np.isfinite(scene.background_level) else None
    return row


def _as_item(split: str, name: str, scene: Scene, question: Question) -> PocketItem:
    spans = [(scene.events[i].start, scene.events[i].end) for i in question.evidence]
    # Rounded outwards, so that a span holds all of its recording.
    seconds = tuple((math.floor(a * 1000) / 1000, math.ceil(b * 1000) / 1000) for a, b in spans)
    return PocketItem(
        key=f"{split}/{name}/{question.task}",
        audio=f"{name}.flac",
        seconds=scene.seconds,
        task=question.task,
        type=QUESTION_TASKS[question.task].type,
        prompt=question.prompt,
        answer=question.answer,
        options=question.options,
        chance=question.chance,
        evidence_seconds=seconds,
        evidence_tokens=tuple((int(a * FRAMES_PER_SECOND), math.ceil(b * FRAMES_PER_SECOND)) for a, b in spans),
    )


def _targets(count: int) -> Iterator[tuple[str, ...]]:
    """What the scenes of one length are asked: two semantic and two acoustic tasks, or one about who and how many."""
    semantic = cycle(("code", "phrase", "object", "line", "transcription"))
    voice, sound = cycle(("speaker", "language", "gender")), cycle(("sound", "instrument"))
    content = round(count * _CONTENT)
    for _ in range(content):
        yield (*islice(semantic, 2), next(voice), next(sound))
    # No phrase: the gender of the voices that say phrases is not known.
    semantic, people = cycle(("code", "object", "line", "transcription")), cycle(PEOPLE)
    for _ in range(count - content):
        yield (next(semantic), next(people))
