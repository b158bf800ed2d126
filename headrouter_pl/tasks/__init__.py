"""Tasks. To add one: a line in :data:`TASKS`, and a parser or a metric where none here fits."""

from __future__ import annotations

from headrouter_pl.errors import ConfigurationError, unknown_name
from headrouter_pl.tasks.audiomarathon import AUDIOMARATHON
from headrouter_pl.tasks.base import Task
from headrouter_pl.tasks.metrics import AnswerAccuracy, CorpusWER, InstructionFollowing, MacroF1, MeanWER, StringMatch
from headrouter_pl.tasks.mmau_pro import MMAU_PRO
from headrouter_pl.tasks.parsers import (
    read_answer,
    read_choice,
    read_option,
    read_spoken,
    read_text,
    read_transcript,
    right_choice,
    right_option,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("transcription", "semantic", "Transcribe the speech.", read_transcript, CorpusWER, 256),
        Task("question", "semantic", "What is said?", read_answer, AnswerAccuracy),
        Task(
            "choice",
            "semantic",
            "{question}\n{options}\nAnswer with the letter of the right option.",
            read_choice,
            AnswerAccuracy,
            8,
        ),
        Task("voice", "voice", "Who is speaking?", read_answer, AnswerAccuracy),
        Task("sound", "sound", "What sound is this?", read_answer, AnswerAccuracy),
        *AUDIOMARATHON,
        *MMAU_PRO,
    )
}
"""Tasks by name."""


def get_task(task: str | Task) -> Task:
    """The task of that name, or the given one."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    return TASKS[task]


def select_tasks(names: list[str] | None, prefix: str) -> list[Task]:
    """Tasks of one benchmark.

    Args:
        names: With the benchmark's prefix or without, in any case; None for all.
        prefix: Of the benchmark's names.

    Raises:
        UnknownNameError: For a name that is none of the benchmark's.
        ConfigurationError: For an empty list, or a name twice.
    """
    known = {name.removeprefix(prefix): task for name, task in TASKS.items() if name.startswith(prefix)}
    if names is None:
        return list(known.values())
    short = [name.lower().replace("_", "-").replace(" ", "-").removeprefix(prefix) for name in names]
    for name, given in zip(short, names, strict=True):
        if name not in known:
            raise unknown_name("task", given, known)
    if not short or len(set(short)) < len(short):
        raise ConfigurationError(f"tasks must name one task or more, each once; got {names}.")
    return [known[name] for name in short]


__all__ = [
    "TASKS",
    "AnswerAccuracy",
    "CorpusWER",
    "InstructionFollowing",
    "MacroF1",
    "MeanWER",
    "StringMatch",
    "Task",
    "get_task",
    "read_answer",
    "read_choice",
    "read_option",
    "read_spoken",
    "read_text",
    "read_transcript",
    "right_choice",
    "right_option",
    "select_tasks",
]
