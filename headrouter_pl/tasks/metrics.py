"""Metrics over answers given as text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


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
        self.correct += sum(p is not None and p.casefold() == t.casefold() for p, t in pairs)
        self.total += len(targets)

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]."""
        return self.correct / self.total.clamp(min=1)
