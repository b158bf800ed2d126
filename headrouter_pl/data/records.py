"""Questions about audio, and lists of them on disk: JSONL, CSV, a folder with either, or a `datasets` dataset."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headrouter_pl.data.audio import AudioBytes, AudioError, as_samples, read_audio
from headrouter_pl.tasks import get_task, right_option

_FIELDS = ("audio", "prompt", "question", "answer", "key", "task", "options")

Clip = np.ndarray | Tensor | str | Path | AudioBytes


@dataclass(frozen=True, eq=False)
class AudioPrompt:
    """One question about one or several recordings.

    Attributes:
        audio: float32 samples ``[n]`` at the processor's rate (an array or a tensor), the path of a file, a file in
            memory, or a list of several of these.
        prompt: The question, as the model is asked it.
        answer: The right answer; may be empty for prediction. With options, one of them or its letter.
        key: What to call the sample in results.
        task: Name of its task; "" for the task of whatever scores it.
        options: Texts of the options that the prompt gives, in the order of their letters.
    """

    audio: Clip | Sequence[Clip]
    prompt: str
    answer: str = ""
    key: str = ""
    task: str = ""
    options: Sequence[str] = ()

    def parts(self) -> list[Clip]:
        """The recordings as they were given."""
        # What is no sequence of recordings, such as a mapping, is one part, for clips to refuse.
        several = isinstance(self.audio, Sequence) and not isinstance(self.audio, (str, bytes))
        return list(self.audio) if several else [self.audio]  # type: ignore[arg-type, list-item]

    def clips(self, sampling_rate: int) -> list[np.ndarray]:
        """The recordings as float32 ``[n]`` at ``sampling_rate``.

        Raises:
            AudioError: If a file cannot be read, or what was given in memory are no such samples.
        """
        name = self.key or self.prompt
        return [
            read_audio(part, sampling_rate) if isinstance(part, (str, Path, AudioBytes)) else as_samples(part, name)
            for part in self.parts()
        ]


def read_records(
    path: str | Path, *, columns: Mapping[str, str | None] | None = None, task: str | None = None
) -> Sequence[AudioPrompt]:
    """Reads records from a list on disk.

    Each has ``audio`` (a path, relative to the list, or several), and a ``prompt``; or, with a task, a ``question``
    that the task's prompt frames, or neither, for the task's prompt alone. There may be an ``answer``, a ``key`` (the
    line or row number, if there is none), a ``task`` and ``options`` (texts of the options; in CSV a JSON list). With
    options, the answer is one of them or its letter; where a task is named, it becomes what this task reads of the two.

    Args:
        path: A CSV file with a header, called ``.csv``; a JSONL file, of one object a line, whatever it is called; a
            folder that holds one ``.csv`` or ``.jsonl`` file, or one called ``metadata``; or a dataset that
            :mod:`datasets` saved to disk, whose audio is decoded by soundfile.
        columns: What the list calls these fields, by the names above; None for one that means something else there.
        task: Name of the task of records that name none.

    Raises:
        AudioError: If the list or a record of it is not such a one; it names the file and line.
    """
    path = Path(path)
    if unknown := sorted(set(columns or {}) - set(_FIELDS)):
        raise AudioError(f"columns names {unknown}, which are no fields of a record; those are {list(_FIELDS)}.")
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = ", ".join(
                str(path / name) for name in json.loads((path / "dataset_dict.json").read_text())["splits"]
            )
            raise AudioError(f"{path} is a dataset of several splits; give one of {splits}.")
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            return DatasetRecords(path, columns or {}, task)
        path = _list_in(path)
    try:
        rows = list(_csv_rows(path, columns or {}) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
    except (OSError, UnicodeDecodeError) as error:
        raise AudioError(f"{path} cannot be read as a list of records: {error}") from error
    named = {theirs for theirs in (columns or {}).values() if theirs is not None}
    if rows and (unknown := sorted(named - {name for _, row in rows if isinstance(row, dict) for name in row})):
        raise AudioError(f"columns names {unknown}, which no record of {path} has.")
    records = []
    for number, row in rows:
        try:
            records.append(make_record(_renamed(row, columns or {}), path.parent, number, task))
        except (ValueError, KeyError, TypeError) as error:
            raise _not_a_record(path, number, error) from error
    if not records:
        raise AudioError(f"{path} holds no records.")
    return records


def make_record(row: Any, folder: Path, number: int, task: str | None = None) -> AudioPrompt:
    """One record; see :func:`read_records`.

    Args:
        row: Its fields.
        folder: That paths of audio are relative to.
        number: What to call it, if it has no key.
        task: Name of its task, if it names none.

    Raises:
        ValueError, KeyError, TypeError: If it is not a record.
    """
    audio = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
    clips = [part if isinstance(part, (AudioBytes, np.ndarray, Tensor)) else folder / part for part in audio]
    if not clips:
        raise ValueError("no audio")
    name = row.get("task") or task or ""
    found = get_task(name) if name else None
    given = row.get("options") or (found.options if found else ())
    if not isinstance(given, (list, tuple)):
        raise TypeError(f'options must be a list (in CSV a JSON list, ["cat", "dog"]), got {given!r}')
    options = [str(option) for option in given]
    if "prompt" not in row and found is not None:
        prompt = found.ask(row.get("question") or "", options)
    else:
        prompt = row["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is {prompt!r}")
    answer, key = row.get("answer"), row.get("key")
    if isinstance(answer, (list, tuple, set, Mapping)):
        raise TypeError(f"answer must be one text, got {answer!r}")
    answer = "" if answer is None else str(answer)
    if options and answer:
        right_option(answer, options)  # refuses what is none of them
        answer = answer if found is None else found.right_answer(answer, options)
    return AudioPrompt(clips, prompt, answer, str(number if key is None else key), name, tuple(options))


class DatasetRecords(Sequence[AudioPrompt]):
    """Records of a dataset on disk, read when they are asked for; see :func:`read_records`."""

    def __init__(self, path: Path, columns: Mapping[str, str | None], task: str | None) -> None:
        try:
            import datasets
        except ImportError as error:
            raise AudioError(f"reading {path} needs datasets ({error}): pip install 'headrouter-pl[eval]'") from error
        data = datasets.load_from_disk(str(path))
        audio = columns.get("audio") or "audio"
        if audio not in data.column_names:
            raise AudioError(f"{path} has no column {audio!r}, but {data.column_names}; name it with columns.")
        if unknown := sorted({theirs for theirs in columns.values() if theirs} - set(data.column_names)):
            raise AudioError(f"columns names {unknown}, which {path} does not have, but {data.column_names}.")
        feature, whole = data.features[audio], datasets.Audio(decode=False)
        if isinstance(feature, datasets.Audio):
            data = data.cast_column(audio, whole)
        elif isinstance(getattr(feature, "feature", None), datasets.Audio):  # a list of recordings
            data = data.cast_column(audio, replace(feature, feature=whole))
        self.path, self.data, self.columns, self.task = path, data, columns, task
        answer = data.features.get(columns.get("answer", "answer") or "")
        self.classes = answer.names if isinstance(answer, datasets.ClassLabel) else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        try:
            row = _renamed(self.data[index], self.columns)
            row["audio"] = self._audio(row["audio"], index)
            if self.classes and row.get("answer") is not None:
                label = row["answer"]
                row["answer"] = self.classes[label] if label >= 0 else ""  # -1 is "unknown"
            return make_record(row, self.path, index, self.task)
        except (ValueError, KeyError, TypeError) as error:
            raise _not_a_record(self.path, index, error) from error

    def task_keys(self) -> list[tuple[str, str]]:
        """Task and key of each record, without reading the rest of it."""
        names = (self.columns.get(name, name) for name in ("task", "key"))
        tasks, keys = (self.data[name] if name in self.data.column_names else [None] * len(self) for name in names)
        rows = enumerate(zip(tasks, keys, strict=True))
        return [(given or self.task or "", str(number if key is None else key)) for number, (given, key) in rows]

    def _audio(self, value: Any, index: int) -> Any:
        if isinstance(value, list):
            return [self._audio(part, index) for part in value]
        if not isinstance(value, dict):
            return value  # a path
        name = value.get("path") or f"audio of row {index}"
        return AudioBytes(value["bytes"], f"{self.path}: {name}") if value.get("bytes") else value["path"]


def _renamed(row: Any, columns: Mapping[str, str | None]) -> Any:
    if not columns or not isinstance(row, Mapping):
        return row
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs is not None and theirs in row}


def _list_in(folder: Path) -> Path:
    lists = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jsonl", ".csv"))
    named = [path for path in lists if path.stem == "metadata"]
    chosen = named if len(named) == 1 else lists
    if len(chosen) != 1:
        found = ", ".join(path.name for path in lists) or "none"
        raise AudioError(f"{folder} must hold one .jsonl or .csv file, or one called metadata; found {found}.")
    return chosen[0]


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    known = path.suffix.lower() in (".jsonl", ".ndjson")  # of others, the first line tells
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise (_not_a_record(path, number, error) if known else _no_list(path, number)) from error
        if not (known or isinstance(row, dict)):
            raise _no_list(path, number)
        known = True
        yield number, row


def _csv_rows(path: Path, columns: Mapping[str, str | None]) -> Iterator[tuple[int, Any]]:
    audio, options = (columns.get(name, name) for name in ("audio", "options"))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row or None in row.values():
                error = ValueError(
                    f"the header has {len(reader.fieldnames or ())} columns, and this line another number"
                )
                raise _not_a_record(path, reader.line_num, error)
            given: dict[str, Any] = {name: value for name, value in row.items() if value != ""}
            for name in (audio, options):
                if name in given and given[name].startswith("["):
                    try:
                        given[name] = json.loads(given[name])
                    except ValueError as error:
                        if name == options:  # a file may be called so
                            raise _not_a_record(path, reader.line_num, error) from error
            yield reader.line_num, given


def _no_list(path: Path, number: int) -> AudioError:
    return AudioError(
        f"{path} is no list of records: its suffix is {path.suffix!r}, and line {number} is no JSON object. Read are "
        "JSONL, of one object a line, and CSV with a header, under the suffix .csv."
    )


def _not_a_record(path: Path, number: int, error: Exception) -> AudioError:
    return AudioError(f"{path}, line {number} is not a record with 'audio' and 'prompt': {error!r}")
