"""Tasks. To add one: a line in :data:`TASKS`, and a parser or a metric where none here fits."""

from __future__ import annotations

import re

from torchmetrics.text import WordErrorRate

from headrouter_pl.errors import unknown_name
from headrouter_pl.tasks.base import Task
from headrouter_pl.tasks.metrics import AnswerAccuracy


def read_transcript(text: str) -> str:
    """Lower-cased words without punctuation, as word error rates are counted.

    Example:
        >>> read_transcript("It was the best of times, it was ...")
        'it was the best of times it was'
    """
    return " ".join(re.findall(r"[\w']+", text.casefold()))


def read_choice(text: str) -> str | None:
    """The one option letter of an answer; None where there is none, or two.

    Example:
        >>> [read_choice(text) for text in ("B", "(b) dog", "The answer is C.", "A or B", "I cannot tell")]
        ['B', 'B', 'C', None, None]
    """
    text = text.strip()
    if match := re.match(r"^\W*([A-Za-z])\W*(?:$|[).:\s]\s*\S)", text):
        rest = text[match.end(1) :]
        if rest[:1] in (")", ".", ":", "") or text.startswith("(") or len(text) == 1:
            return match.group(1).upper()
    # "A dog" is an article, "A or B" and "A is right" are letters.
    text = re.sub(r"\bA\s+(?!(?:and|because|is|or)\b)(?=[a-z])", "", text)
    letters = set(re.findall(r"\b([A-H])\b", text))
    return letters.pop() if len(letters) == 1 else None


def read_answer(text: str) -> str | None:
    """The answer itself, without surrounding space and full stop."""
    return text.strip().rstrip(".").strip() or None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("transcription", "semantic", "Transcribe the speech.", read_transcript, WordErrorRate, 256),
        Task("question", "semantic", "What is said?", read_answer, AnswerAccuracy),
        Task("choice", "semantic", "Answer with the letter of the right option.", read_choice, AnswerAccuracy, 8),
        Task("voice", "voice", "Who is speaking?", read_answer, AnswerAccuracy),
        Task("sound", "sound", "What sound is this?", read_answer, AnswerAccuracy),
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


__all__ = ["TASKS", "AnswerAccuracy", "Task", "get_task", "read_answer", "read_choice", "read_transcript"]
