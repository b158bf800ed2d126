"""What data modules of published benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.audio_prompts import AudioPromptDataModule
from headrouter_pl.data.records import AudioPrompt
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.tasks import Task, right_choice

if TYPE_CHECKING:
    from transformers import ProcessorMixin


class BenchmarkDataModule(AudioPromptDataModule):
    """A benchmark for validation, testing and prediction; subclasses write :meth:`select` and :meth:`read_tasks`.

    Args:
        processor: The model's processor, the name or path of a checkpoint that has it, or ``"pocket"``.
        root: Folder of the benchmark's files.
        tasks: Names of the tasks to score, with the benchmark's prefix or without; all if None.
        samples_per_task: So many samples of each task, evenly spread over its files, for a first look; all if None.
        prompts: Prompts to use instead of the tasks' own, by the same names; with the same places to fill in.
        on_bad_audio: ``"report"`` counts samples whose audio cannot be used as wrong and lists them, instead of
            stopping.
        system_prompt: Said by the system before the question; the chat template's own if None.
        batch_size: Samples per batch.
        num_workers: Processes that load audio.
    """

    def __init__(
        self,
        processor: ProcessorMixin | str,
        root: str | Path,
        *,
        tasks: list[str] | None = None,
        samples_per_task: int | None = None,
        prompts: Mapping[str, str] | None = None,
        on_bad_audio: Literal["error", "report"] = "error",
        system_prompt: str | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            processor,
            on_bad_audio=on_bad_audio,
            system_prompt=system_prompt,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if samples_per_task is not None and samples_per_task < 1:
            raise ConfigurationError(f"samples_per_task must be at least 1, got {samples_per_task}.")
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigurationError(f"root is {str(root)!r}, which is no folder.")
        self.samples_per_task = samples_per_task
        self.tasks = self.select(tasks)
        given = dict(prompts or {})
        self.prompts = {task.name: given.pop(name) for name in list(given) for task in self.select([name])}

    def select(self, tasks: list[str] | None) -> list[Task]:
        """The benchmark's tasks of these names."""
        raise NotImplementedError

    def read_tasks(self) -> dict[str, list[AudioPrompt]]:
        """All records of the tasks, by the task's name."""
        raise NotImplementedError

    def read(self, stage: str) -> list[AudioPrompt]:
        """All records, task by task; there are none to train on."""
        if stage == "train":
            raise ConfigurationError(f"{type(self).__name__} is for evaluation; it has no records to fit on.")
        return [record for records in self.read_tasks().values() for record in _spread(records, self.samples_per_task)]

    def record(
        self, task: Task, key: str, audio: Sequence[Path], answer: str, question: str = "", options: Sequence[str] = ()
    ) -> AudioPrompt:
        """One record, asked with the task's prompt or the one given for it."""
        if task.name in self.prompts:
            task = replace(task, prompt=self.prompts[task.name])
        return AudioPrompt(list(audio), task.ask(question, options), answer, key, task.name, tuple(options))


class RightAnswers:
    """Letters of right answers; what is no option is left as it is, scores as wrong, and is warned of in the end.

    Args:
        path: File that the answers are of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong: list[str] = []

    def letter(self, answer: object, options: Sequence[str], key: str) -> str:
        """The letter of an answer that is a letter or the text of an option."""
        try:
            return right_choice(str(answer), options)
        except ValueError as error:
            self.wrong.append(f"{key}: {error}")
            return str(answer)

    def warn(self, total: int) -> None:
        """Warns of answers that are no option; refuses a file of which most are."""
        if not self.wrong:
            return
        text = f"{self.path}: {len(self.wrong)} of {total} right answers are no option ({'; '.join(self.wrong[:3])})."
        if 2 * len(self.wrong) > total:
            raise AudioError(f"{text} Its layout is not the one that is read here.")
        rank_zero_warn(f"{text} Whatever is answered to these scores as wrong.")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        AudioError: If it is not one; it names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} cannot be read as JSON: {error}") from error


def _spread(records: list[AudioPrompt], count: int | None) -> list[AudioPrompt]:
    if count is None or count >= len(records):
        return records
    return [records[i * len(records) // count] for i in range(count)]
