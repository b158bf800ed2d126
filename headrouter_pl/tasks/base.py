"""What a task is: a prompt, a way to read the answer, a metric, and its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Task:
    """One kind of question about audio.

    Attributes:
        name: Its key in :data:`headrouter_pl.tasks.TASKS`.
        type: ``"semantic"``, ``"voice"`` or ``"sound"``.
        prompt: A prompt that asks for it.
        parse: Reads the answer out of generated text; None where there is none, which counts as wrong.
        metric: Makes the metric, whose ``update(predictions, targets)`` takes two lists of strings.
        max_new_tokens: Enough for an answer.
    """

    name: str
    type: str
    prompt: str
    parse: Callable[[str], str | None]
    metric: Callable[[], Metric]
    max_new_tokens: int = 32
