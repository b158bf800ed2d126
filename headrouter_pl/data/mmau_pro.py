"""MMAU-Pro as it lies on disk: ``test.parquet``, and the audio of ``data.zip`` unpacked beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.benchmark import BenchmarkDataModule, RightAnswers, read_json
from headrouter_pl.data.records import AudioPrompt
from headrouter_pl.tasks import Task, select_tasks
from headrouter_pl.tasks.base import LETTERS
from headrouter_pl.tasks.instructions import INSTRUCTIONS as CHECKS
from headrouter_pl.tasks.instructions import follows
from headrouter_pl.tasks.mmau_pro import INSTRUCTIONS, OPEN, PREFIX

LISTS = ("test.parquet", "test.jsonl", "test.json")
"""Names of the list of questions, of which there must be one."""


class MMAUProDataModule(BenchmarkDataModule):
    """Questions of MMAU-Pro's categories; see :class:`BenchmarkDataModule` for the arguments.

    ``root`` holds ``test.parquet`` (or the same rows as ``test.jsonl`` or ``test.json``), whose fields
    ``audio_path``, ``question``, ``choices``, ``answer``, ``category``, ``task_identifier`` and ``kwargs`` are read,
    and the audio at the listed paths. A question without choices is an open one, whatever its category. Keys are the
    rows' numbers.

    Raises:
        AudioError: If the list is missing, or a row is not as expected; it names the file and the row.
    """

    def select(self, tasks: list[str] | None) -> list[Task]:
        """Categories such as "voice_chat" or "mmau-pro-voice-chat"; None for all."""
        return select_tasks(tasks, PREFIX)

    def read_tasks(self) -> dict[str, list[AudioPrompt]]:
        """All records of the categories."""
        path = next((self.root / name for name in LISTS if (self.root / name).is_file()), None)
        if path is None:
            raise AudioError(f"{self.root} holds none of {', '.join(LISTS)}.")
        tasks = {task.name: task for task in self.select(None)}
        records: dict[str, list[AudioPrompt]] = {task.name: [] for task in self.tasks}
        answers, closed = RightAnswers(path), 0
        for index, row in enumerate(_rows(path)):
            try:
                choices = [str(choice) for choice in _list(row.get("choices"))]
                name = PREFIX + str(row["category"]).lower().replace("_", "-").replace(" ", "-")
                task = tasks[name]
                if len(choices) < 2 and name != INSTRUCTIONS:
                    task, choices = tasks[OPEN], []
                if task.name not in records:
                    continue
                key = f"{index:05d}"
                question = str(row["question"])
                audio = [self.root / str(place).lstrip("/") for place in _list(row["audio_path"])]
                if not audio:
                    raise ValueError("audio_path is empty")
                if task.name == INSTRUCTIONS:
                    answer, choices = _instruction(row, question), []
                elif task.name == OPEN:
                    answer, choices = str(row["answer"]), []
                else:
                    if len(choices) > len(LETTERS):
                        raise ValueError(f"{len(choices)} choices")
                    closed += 1
                    answer = answers.letter(row["answer"], choices, key)
            except (KeyError, TypeError, ValueError) as error:
                raise AudioError(f"{path}, row {index}: {error!r}.") from error
            records[task.name].append(self.record(task, key, audio, answer, question, choices))
        answers.warn(closed)
        # A subset of the benchmark may lack categories; one that was asked for by name may not.
        empty = [name for name, found in records.items() if not found]
        if len(self.tasks) < len(tasks) and empty:
            raise AudioError(f"{path} has no question of {', '.join(empty)}.")
        return {name: found for name, found in records.items() if found}


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".json":
        yield from read_json(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise AudioError(f"{path}, line {number} is not JSON: {error}.") from error
    else:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise AudioError(f"reading {path} needs pyarrow ({error}): pip install 'headrouter-pl[eval]'") from error
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _list(value: Any) -> list[Any]:
    """A field that may be a list, one value or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _instruction(row: Mapping[str, Any], question: str) -> str:
    """The instruction to check, as the metric takes it."""
    name, arguments = row["task_identifier"], row.get("kwargs") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if name not in CHECKS:
        raise ValueError(f"unknown task_identifier {name!r}")
    arguments = {key: value for key, value in arguments.items() if value is not None}
    follows("", name, arguments, question)  # an argument that is missing shows now
    return json.dumps({"task_identifier": name, "kwargs": arguments, "question": question})
