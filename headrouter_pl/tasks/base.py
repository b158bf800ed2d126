"""What a task is: a prompt, a way to read the answer, a metric, and its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from headrouter_pl.task_types import family_of

if TYPE_CHECKING:
    from torchmetrics import Metric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of options, in order."""


class Parser(Protocol):
    """Reads the answer out of generated text; None where there is none, which counts as wrong."""

    def __call__(self, text: str, options: Sequence[str] = ..., /) -> str | None:
        """The answer.

        Args:
            text: What the model said, or the right answer as the data has it.
            options: Texts of the options that were given; none for an open question.
        """


@dataclass(frozen=True)
class Task:
    """One kind of question about audio.

    Attributes:
        name: Its key in :data:`headrouter_pl.tasks.TASKS`.
        type: ``"semantic"``, ``"voice"`` or ``"sound"``.
        prompt: A prompt that asks for it; may have places for ``{question}``, ``{options}`` (a line for each) and
            ``{letters}`` ("A, B, or C"). Without any, a question stands in the prompt's place.
        parse: Reads the answer out of generated text; right answers are read by it too, so that both compare.
        metric: Makes the metric that is the task's score; its ``update(predictions, targets)`` takes two lists of
            strings, the predictions with None for what could not be read. ``higher_is_better`` says which way it goes.
        max_new_tokens: Enough for an answer.
        also: More metrics to report, by name.
        options: Texts of the options, where all questions have the same ones; "" is that of a question without.
        option: How an option is written in the prompt.
    """

    name: str
    type: str
    prompt: str
    parse: Parser
    metric: Callable[[], Metric]
    max_new_tokens: int = 32
    also: Mapping[str, Callable[[], Metric]] = field(default_factory=dict)
    options: Sequence[str] = ()
    option: str = "{letter}. {option}"

    @property
    def family(self) -> str:
        """``"semantic"``, or ``"acoustic"`` for voices and sounds."""
        return family_of(self.type)

    @property
    def reads_letters(self) -> bool:
        """Whether an option's letter is the same answer as its text."""
        options = ("one", "two")
        return self.parse("B", options) == self.parse("two", options)

    def right_answer(self, answer: str, options: Sequence[str]) -> str:
        """A right answer as this task asks for it: an option's letter, or its text.

        Args:
            answer: As the data have it, a letter or a text.
            options: Texts of the options; none for an open question.

        Raises:
            ValueError: If it is none of the options.
        """
        from headrouter_pl.tasks.parsers import right_choice, right_option

        return right_choice(answer, options) if self.reads_letters else options[right_option(answer, options)]

    def ask(self, question: str = "", options: Sequence[str] = ()) -> str:
        """The prompt for one question.

        Args:
            question: Its text.
            options: Texts of its options, in the order of their letters.

        Raises:
            ValueError: If there are options, but the prompt has no place for anything.
        """
        fixed = not any(f"{{{place}}}" in self.prompt for place in ("question", "options", "letters"))
        prompt = "{question}" if fixed and question else self.prompt
        if options and not self.options and fixed:
            raise ValueError(
                f"the task {self.name!r} has no place for options in its prompt: name them in a 'prompt', or take the "
                "task 'choice'"
            )
        letters = LETTERS[: len(options)]
        lines = (self.option.format(letter=a, option=b) for a, b in zip(letters, options, strict=True))
        named = f"{', '.join(letters[:-1])}{',' if len(letters) > 2 else ''} or {letters[-1]}" if letters else ""
        return prompt.format(question=question, options="\n".join(lines), letters=named).lstrip("\n")
