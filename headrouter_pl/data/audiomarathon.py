"""AudioMarathon as it lies on disk: ten tasks on 90 to 300 s of audio.

To add a task: its entry in :mod:`headrouter_pl.tasks.audiomarathon`, and a line in :data:`LAYOUTS` that says what file
or folder it is found by and how that is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.benchmark import BenchmarkDataModule, RightAnswers, read_json
from headrouter_pl.data.records import AudioPrompt
from headrouter_pl.tasks import Task, select_tasks
from headrouter_pl.tasks.audiomarathon import PREFIX
from headrouter_pl.tasks.base import LETTERS


class AudioMarathonDataModule(BenchmarkDataModule):
    """Questions of AudioMarathon's ten tasks; see :class:`BenchmarkDataModule` for the arguments.

    The files that list a task's questions are looked for by name anywhere under ``root``, so that folders may have
    other names than the authors'. Audio lies at the listed path beside the list, or in ``wav/`` there.

    Raises:
        AudioError: If a task's list is missing or there are several of it, or one is not as expected; it names the
            file.
    """

    def select(self, tasks: list[str] | None) -> list[Task]:
        """Tasks such as "ser" or "audiomarathon-ser"; None for all ten."""
        return select_tasks(tasks, PREFIX)

    def read_tasks(self) -> dict[str, list[AudioPrompt]]:
        """All records of the tasks."""
        found = _find(self.root, [LAYOUTS[task.name.removeprefix(PREFIX)].name for task in self.tasks])
        records, problems = {}, []
        for task in self.tasks:
            layout = LAYOUTS[task.name.removeprefix(PREFIX)]
            places = found[layout.name]
            if len(places) == 1:
                records[task.name] = list(layout.read(self, task, places[0]))
                if not records[task.name]:
                    problems.append(f"{places[0]} holds no sample of {task.name}")
            else:
                there = f"several: {', '.join(map(str, places))}" if places else "none"
                problems.append(f"{task.name} needs {layout.name}, found {there}")
        if problems:
            raise AudioError(f"Under {self.root}: {'; '.join(problems)}. Score fewer with tasks=[...].")
        return records


Reader = Callable[[AudioMarathonDataModule, Task, Path], Iterator[AudioPrompt]]


def read_questions(data: AudioMarathonDataModule, task: Task, path: Path) -> Iterator[AudioPrompt]:
    """A JSON list of questions, or an object that has it as ``tasks``.

    Each has a ``path`` or ``audio_path``; a ``question``; ``choice_a``, ``choice_b`` and so on, or ``choices`` or
    ``options``, a list of texts or an object by letters; and ``answer_gt`` or ``answer``, a letter or an option's text.
    """
    rows = read_json(path)
    if isinstance(rows, Mapping):
        rows = rows.get("tasks")
    if not isinstance(rows, list):
        raise AudioError(f"{path} must hold a list of questions, or an object with one as 'tasks'.")
    answers = RightAnswers(path)
    for index, row in enumerate(rows):
        try:
            audio = _first(row, "path", "audio_path")
            answer = _first(row, "answer_gt", "answer")
            options = list(task.options) or _options(row)
        except (KeyError, TypeError, ValueError) as error:
            raise AudioError(f"{path}, question {index}: {error!r}; its fields are {_fields(row)}.") from error
        key = f"{task.name.removeprefix(PREFIX)}/{index:05d}"
        letter = answers.letter(answer, options, key)
        yield data.record(task, key, [_audio(path.parent, audio)], letter, str(row.get("question", "")), options)
    answers.warn(len(rows))


def read_real_or_fake(data: AudioMarathonDataModule, task: Task, folder: Path) -> Iterator[AudioPrompt]:
    """A folder of ``real/*.wav`` and ``fake/*.wav``."""
    for letter, name in zip(LETTERS, task.options, strict=False):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() == ".wav")
        if not files:
            raise AudioError(f"{folder / name} holds no .wav file.")
        for path in files:
            key = f"{task.name.removeprefix(PREFIX)}/{name}/{path.stem}"
            yield data.record(task, key, [path], letter, options=task.options)


def read_transcripts(data: AudioMarathonDataModule, task: Task, folder: Path) -> Iterator[AudioPrompt]:
    """``SPEAKER/CHAPTER/NAME.flac``, with ``NAME.txt`` or a line of ``SPEAKER-CHAPTER.trans.txt``."""
    for path in sorted(folder.glob("*/*/*.flac")):
        text = _transcript(path)
        if not text:
            raise AudioError(f"{path} has no transcript: neither {path.stem}.txt nor a line in {_shared(path).name}.")
        yield data.record(task, f"{task.name.removeprefix(PREFIX)}/{path.stem}", [path], text)


@dataclass(frozen=True)
class Layout:
    """Where a task's questions are.

    Attributes:
        name: The file or folder that it is found by; ``"real/ and fake/"`` for a folder of these.
        read: Reads it.
    """

    name: str
    read: Reader = read_questions


_BOTH = "real/ and fake/"
LAYOUTS: dict[str, Layout] = {
    "ser": Layout("merged_audio_data.json"),
    "scr": Layout("race_benchmark.json"),
    "asr": Layout("test-clean", read_transcripts),
    "sed": Layout("desed_sound_event_detection_task.json"),
    "mc": Layout("music_genre_classification_meta.json"),
    "sd": Layout(_BOTH, read_real_or_fake),
    "asc": Layout("acoustic_scene_task_meta.json"),
    "er": Layout("audio_emotion_dataset.json"),
    "sgr": Layout("gender_id_task_meta.json"),
    "sar": Layout("age_classification_task_meta.json"),
}
"""Layouts by task, without the prefix."""


def _find(root: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for name in (*folders, *files):
            if name in found:
                found[name].append(Path(folder, name))
        if _BOTH in found and {"real", "fake"} <= set(folders):
            found[_BOTH].append(Path(folder))
    return found


def _first(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise KeyError(names[0])


def _options(row: Mapping[str, Any]) -> list[str]:
    given = row.get("choices") or row.get("options")
    if given is None:
        given = [row[name] for name in (f"choice_{letter.lower()}" for letter in LETTERS) if row.get(name) is not None]
    elif isinstance(given, Mapping):
        letters = sorted(given)
        if [letter.upper() for letter in letters] != list(LETTERS[: len(letters)]):
            raise ValueError(f"options are named {letters}")
        given = [given[letter] for letter in letters]
    if isinstance(given, str) or len(given) < 2:
        raise ValueError(f"options are {given!r}")
    return [str(option) for option in given]


def _audio(folder: Path, name: str) -> Path:
    """Beside the list or in ``wav/``, wherever it is; where it should be, if it is nowhere."""
    places = (folder / "wav" / name, folder / name)
    for place in places:
        if place.is_file():
            return place
    return places[0] if (folder / "wav").is_dir() else places[1]


def _fields(row: Any) -> object:
    return sorted(row) if isinstance(row, Mapping) else repr(row)


def _shared(path: Path) -> Path:
    chapter = path.parent
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def _transcript(path: Path) -> str:
    own = path.with_suffix(".txt")
    if own.is_file():
        return own.read_text(encoding="utf-8").strip()
    if _shared(path).is_file():
        for line in _shared(path).read_text(encoding="utf-8").split("\n"):
            name, _, text = line.partition(" ")
            if name == path.stem:  # the authors take the first line that begins so, "1-2-10" for "1-2-1" too
                return text.strip()
    return ""
