"""How answers to questions of the Pocket benchmark are scored, and what is reported of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrouter_pl.tasks import read_transcript

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem

__all__ = [
    "TARGETS",
    "Answered",
    "Scorable",
    "confusions",
    "normalize",
    "score_answer",
    "summarize",
    "target",
    "wilson",
]

TARGETS: Mapping[str, float] = {
    "language": 0.95,
    "code": 0.90,
    "phrase": 0.80,
    "speaker": 0.85,
    "sound": 0.70,
    "gender": 0.95,
    "object": 0.70,
    "instrument": 0.70,
}
"""Task -> accuracy to reach on scenes of up to 15 s; 90 % of it on up to 30 s, 75 % on longer ones."""

_SHORT, _MIDDLE = 15, 30
_ARTICLES = frozenset({"the", "a", "an"})
_SPELLINGS = {"alfa": "alpha", "juliett": "juliet", "whisky": "whiskey"}
_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_BELOW_100 = re.compile(rf"\b(?:({'|'.join(_TENS)})(?: ({'|'.join(_ONES[1:10])}))?|({'|'.join(_ONES)}))\b")
_SCALES = (
    (re.compile(r"\b(?:(\d+) )?hundred(?: (?:and )?(\d{1,2}))?\b"), 100),
    (re.compile(r"\b(?:(\d+) )?thousand(?: (?:and )?(\d{1,3}))?\b"), 1000),
)
_RESAMPLES = 2_000


class Scorable(Protocol):
    """What must be known of a question to score an answer to it."""

    @property
    def task(self) -> str:
        """Key of :data:`headrouter_pl.data.pocket.questions.QUESTION_TASKS`."""

    @property
    def answer(self) -> str:
        """The right answer."""

    @property
    def options(self) -> Sequence[str]:
        """Answers named in the prompt; empty for open questions."""


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    Attributes:
        right: Whether it is the right one.
        valid: Whether it answers at all: it is not empty and, if there are options, names at least one.
        errors: Word errors of a transcription.
        words: Words of the right transcription; 0 for other tasks.
    """

    right: bool
    valid: bool
    errors: int = 0
    words: int = 0


@dataclass(frozen=True)
class Answered:
    """A question with what a model said.

    Attributes:
        item: The question.
        text: The model's answer.
        silenced: Its answer with the audio silenced; None if it was not asked.
    """

    item: PocketItem
    text: str
    silenced: str | None = None


def score_answer(item: Scorable, text: str) -> Score:
    """Scores an answer.

    Both sides are normalised (:func:`normalize`), and must then be the same. If the prompt names options, it is also
    right to start with the right one and to name no other. Transcriptions are compared word by word.
    """
    if item.task == "transcription":
        from torchmetrics.functional.text import word_error_rate

        spoken, heard = read_transcript(item.answer), read_transcript(text)
        words = len(spoken.split())
        return Score(spoken == heard, bool(heard), round(float(word_error_rate(heard, spoken)) * words), words)
    literal = frozenset(name.casefold() for name in (item.answer, *item.options))
    want, said = normalize(item.answer, literal), normalize(text, literal)
    if not item.options:
        return Score(said == want, bool(said))
    options = {normalize(option, literal) for option in item.options} | {want}
    named = _named(said, options)
    starts = bool(named) and said[: len(named[0])] == named[0]
    return Score(starts and set(named) == {want}, bool(named))


def normalize(text: str, literal: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Words for comparison: no case, punctuation or articles, and numbers as digits.

    Args:
        text: An answer.
        literal: Articles to keep, because they are an answer: the letter "a".

    Example:
        >>> normalize("The Drum."), normalize("twenty-one"), normalize("X-ray")
        (('drum',), ('21',), ('xray',))
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\bx[\s-]+ray\b", "xray", re.sub(r"['’`]", "", text))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)  # 1,000
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", text)]
    text = _BELOW_100.sub(_value, " ".join(word for word in words if word not in _ARTICLES - literal))
    for pattern, scale in _SCALES:
        for match in reversed(list(pattern.finditer(text))):
            value = int(match[1] or 1) * scale + int(match[2] or 0)
            text = f"{text[: match.start()]}{value}{text[match.end() :]}"
    return tuple(text.split())


def _value(match: re.Match[str]) -> str:
    tens, ones, below_20 = match.groups()
    if below_20:
        return str(_ONES.index(below_20))
    return str(20 + 10 * _TENS.index(tens) + (_ONES.index(ones) if ones else 0))


def _named(words: tuple[str, ...], options: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The options that a text names, in order; of those that begin at one word, the longest."""
    found, at = [], 0
    by_length = sorted(options, key=len, reverse=True)
    while at < len(words):
        here = next((option for option in by_length if option and words[at : at + len(option)] == option), None)
        found += [here] if here else []
        at += len(here) if here else 1
    return found


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Example:
        >>> [round(bound, 3) for bound in wilson(8, 10)]
        [0.49, 0.943]
    """
    if not count:
        return 0.0, 1.0
    from scipy.stats import binomtest

    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return float(low), float(high)


def target(task: str, seconds: float) -> float | None:
    """The accuracy to reach on scenes of that length; None for tasks without one."""
    if task not in TARGETS:
        return None
    return round(TARGETS[task] * (1.0 if seconds <= _SHORT else 0.9 if seconds <= _MIDDLE else 0.75), 4)


def summarize(results: Sequence[Answered]) -> list[dict[str, Any]]:
    """Figures per task and per type (task ``"all"``), for each length and for each group of lengths.

    Groups are up to 15 s, up to 30 s, and longer; only lengths that occur are named. Rows of a group have a ``target``,
    where the task has one, and whether it is ``reached``.

    Returns:
        Rows with ``task``, ``type``, ``length_s`` (a number, or ``"8-15"`` for a group), ``n``, ``accuracy``, ``ci95``
        (Wilson), ``chance`` and ``invalid`` (answers that are none); if the silenced audio was asked about,
        ``accuracy_silenced`` and ``ci95_silenced``; for transcription ``wer``, ``wer_ci95`` (bootstrap) and
        ``wer_silenced``. Accuracy is the share exactly right, in transcription too.
    """
    types = {result.item.task: result.item.type for result in results}
    rows = []
    for task in [*types, *(f"all {kind}" for kind in dict.fromkeys(types.values()))]:
        kind = task.removeprefix("all ") if task not in types else types[task]
        of_task = [r for r in results if (r.item.task == task if task in types else r.item.type == kind)]
        present = sorted({round(r.item.seconds) for r in of_task})
        groups = [[n for n in present if (n > _SHORT) + (n > _MIDDLE) == step] for step in range(3)]
        for lengths in sorted({tuple(part) for part in [*groups, *([n] for n in present)] if part}):
            part = [r for r in of_task if round(r.item.seconds) in lengths]
            label: int | str = lengths[0] if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
            row = {"task": task if task in types else "all", "type": kind, "length_s": label, **_figures(part)}
            goal = target(task, lengths[0])
            if goal is not None and list(lengths) in groups:
                row |= {"target": goal, "reached": row["accuracy"] >= goal}
            rows.append(row)
    return rows


def _figures(part: Sequence[Answered]) -> dict[str, Any]:
    count = len(part)
    scores = [score_answer(r.item, r.text) for r in part]
    right = sum(score.right for score in scores)
    row: dict[str, Any] = {
        "n": count,
        "accuracy": round(right / count, 4),
        "ci95": [round(bound, 4) for bound in wilson(right, count)],
        "chance": round(sum(r.item.chance for r in part) / count, 4),
        "invalid": sum(not score.valid for score in scores),
    }
    silenced = [score_answer(r.item, r.silenced) for r in part if r.silenced is not None]
    if len(silenced) == count:
        right = sum(score.right for score in silenced)
        row["accuracy_silenced"] = round(right / count, 4)
        row["ci95_silenced"] = [round(bound, 4) for bound in wilson(right, count)]
    if all(score.words for score in scores):
        row |= {"wer": round(_wer(scores), 4), "wer_ci95": _bootstrap(scores)}
        if len(silenced) == count:
            row["wer_silenced"] = round(_wer(silenced), 4)
    return row


def _wer(scores: Sequence[Score]) -> float:
    return sum(score.errors for score in scores) / sum(score.words for score in scores)


def _bootstrap(scores: Sequence[Score]) -> list[float]:
    errors, words = np.array([(score.errors, score.words) for score in scores]).T
    drawn = np.random.default_rng(0).integers(len(scores), size=(_RESAMPLES, len(scores)))
    rates = errors[drawn].sum(1) / words[drawn].sum(1)
    return [round(float(bound), 4) for bound in np.quantile(rates, (0.025, 0.975))]


def confusions(results: Sequence[Answered], task: str) -> list[tuple[str, str, int]]:
    """What was said for what in a task: ``(right answer, answer, times)``, right ones too, most frequent first.

    Answers are normalised; one that begins with an option counts as that option.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for result in results:
        item = result.item
        if item.task == task:
            literal = frozenset(name.casefold() for name in (item.answer, *item.options))
            said = normalize(result.text, literal)
            named = _named(said, {normalize(option, literal) for option in item.options})
            said = named[0] if named and said[: len(named[0])] == named[0] else said
            pairs[" ".join(normalize(item.answer, literal)), " ".join(said)] += 1
    return [(*pair, times) for pair, times in sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))]
