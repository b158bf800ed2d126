"""Metrics over answers given as text: an answer that could not be read (None) counts as wrong."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_f1_score
from torchmetrics.functional.text import word_error_rate
from torchmetrics.text import WordErrorRate

from headrouter_pl.results import json_lines, parse_json_lines
from headrouter_pl.tasks.instructions import follows
from headrouter_pl.tasks.parsers import read_transcript


class Rows(Metric):
    """Keeps rows of JSON values, so that after synchronisation every process has those of all.

    Attributes:
        lines: uint8 tensors, JSON lines in UTF-8.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets all rows."""
        super().reset()
        # Never empty: torchmetrics would stand in a float tensor for a process without rows, and gathering would fail.
        self.lines.append(torch.zeros(0, dtype=torch.uint8, device=self.device))

    def add(self, rows: Sequence[Any]) -> None:
        """Keeps rows."""
        if rows:
            values = torch.frombuffer(bytearray(json_lines(rows).encode()), dtype=torch.uint8)
            self.lines.append(values.to(self.device))

    def rows(self) -> list[Any]:
        """The rows; within ``compute``, of all processes."""
        lines = self.lines if isinstance(self.lines, list) else [self.lines]
        text = torch.cat([line.cpu() for line in lines]).numpy().tobytes().decode()
        return parse_json_lines(text)


class AnswerAccuracy(Metric):
    """Share of answers equal to the right one; an answer that could not be read counts as wrong.

    Example:
        >>> metric = AnswerAccuracy()
        >>> metric.update(["B", None], ["B", "C"])
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str | None], targets: Sequence[str]) -> None:
        """Counts a batch.

        Args:
            predictions: Answers, None where none could be read.
            targets: Right answers.
        """
        pairs = zip(predictions, targets, strict=True)
        self.correct += sum(p is not None and self.right(p, t) for p, t in pairs)
        self.total += len(targets)

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]."""
        return self.correct / self.total.clamp(min=1)

    @staticmethod
    def right(prediction: str, target: str) -> bool:
        """Whether an answer is right: here, whether it is the same, but for case and how accents are written."""
        return _folded(prediction) == _folded(target)


class StringMatch(AnswerAccuracy):
    """Share of answers that hold the words of the right one, in their order and together.

    Example:
        >>> metric = StringMatch()
        >>> metric.update(["They met in New York, in May.", "In York"], ["new york", "new york"])
        >>> metric.compute()
        tensor(0.5000)
    """

    @staticmethod
    def right(prediction: str, target: str) -> bool:
        """Whether the right answer's words stand in the answer."""
        words = read_transcript(target)
        return bool(words) and f" {words} " in f" {read_transcript(prediction)} "


class InstructionFollowing(AnswerAccuracy):
    """Share of answers whose form is as told; a target is JSON with an instruction's name and its arguments.

    Example:
        >>> metric = InstructionFollowing()
        >>> metric.update(["two words"], ['{"task_identifier": "Number Words (at most)", "kwargs": {"N": 2}}'])
        >>> metric.compute()
        tensor(1.)
    """

    @staticmethod
    def right(prediction: str, target: str) -> bool:
        """Whether the instruction was followed."""
        told = json.loads(target)
        return follows(prediction, told["task_identifier"], told["kwargs"], told.get("question", ""))


class MacroF1(Rows):
    """F1 of each class, averaged over the classes that occur among targets or answers.

    An answer that could not be read is a miss of its target's class. It is no class of its own, and no answer of any.

    Example:
        >>> metric = MacroF1()
        >>> metric.update(["A", "B", None], ["A", "B", "B"])
        >>> metric.compute()  # F1 is 1 for A and 2/3 for B
        tensor(0.8333)
    """

    is_differentiable = False
    higher_is_better = True

    def update(self, predictions: Sequence[str | None], targets: Sequence[str]) -> None:
        """Keeps a batch.

        Args:
            predictions: Answers, None where none could be read.
            targets: Right answers.
        """
        self.add(list(zip(predictions, targets, strict=True)))

    def compute(self) -> Tensor:
        """Macro F1 in [0, 1]; 0 of nothing."""
        pairs = [(None if p is None else _folded(p), _folded(t)) for p, t in self.rows()]
        classes = sorted({name for pair in pairs for name in pair if name is not None})
        if not classes:
            return torch.tensor(0.0, device=self.device)
        index: Mapping[str | None, int] = {name: i for i, name in enumerate(classes)} | {None: len(classes)}
        answers, targets = torch.tensor([[index[name] for name in pair] for pair in pairs]).unbind(1)
        each = multiclass_f1_score(answers, targets, num_classes=len(classes) + 1, average="none")
        return each[:-1].mean().to(self.device)


class CorpusWER(WordErrorRate):
    """Word errors over all words of the references; an answer that could not be read has no words.

    References that have no word among them count as 0 if nothing was said, else 1.

    Example:
        >>> metric = CorpusWER()
        >>> metric.update(["a b", "c"], ["a d", "..."])
        >>> metric.compute()  # two errors, two words
        tensor(1.)
    """

    def update(self, predictions: Sequence[str | None], targets: Sequence[str]) -> None:
        """Counts a batch.

        Args:
            predictions: Transcripts, None where none could be read.
            targets: Right transcripts.
        """
        super().update([p or "" for p in predictions], [t if read_transcript(t) else "" for t in targets])

    def compute(self) -> Tensor:
        """Word error rate, from 0 on; above 1 where more is said than was spoken."""
        return super().compute() if self.total else (self.errors > 0).float()


class MeanWER(Metric):
    """Word error rate of each recording, averaged over recordings.

    A recording whose reference has no word counts as 0 if nothing was said, else 1.

    Example:
        >>> metric = MeanWER()
        >>> metric.update(["a b", None], ["a b", "c d"])
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str | None], targets: Sequence[str]) -> None:
        """Counts a batch.

        Args:
            predictions: Transcripts, None where none could be read.
            targets: Right transcripts.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            said = prediction or ""
            if read_transcript(target):
                self.errors += word_error_rate([said], [target]).to(self.device)
            else:
                self.errors += bool(said.split())
            self.total += 1

    def compute(self) -> Tensor:
        """Mean word error rate, from 0 on; above 1 where more is said than was spoken."""
        return self.errors / self.total.clamp(min=1)


def _folded(text: str) -> str:
    """The same for what differs in case alone, or in how accents are written."""
    return unicodedata.normalize("NFC", text).casefold()
