"""What can be said of pruning methods that answered the same questions, and how surely.

:func:`summarize` turns the rows that ``headrouter-pl compare`` writes, one an answer, into the figures of its tables
and charts. Several questions share an audio, and are pruned alike: its resamples draw whole audios.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.statistics import (
    RESAMPLES,
    Floats,
    difference_of,
    mean_over_tasks,
    parts_of,
    percent_of_unpruned,
    resample,
    resample_weights,
)
from headrouter_pl.task_types import family_of, type_among

__all__ = ["UNPRUNED", "Method", "evidence_recall", "summarize"]

UNPRUNED = "unpruned"
"""What rows without a pruner name as their method."""

_USUAL_ROUTERS = {"headrouter": "joint"}  # of scorers that route: repeated here, for their room is above this one


@dataclass(frozen=True)
class Method:
    """A pruning method with its settings, as a configuration names it.

    Attributes:
        name: What to call it in tables.
        scorer: A name of :data:`headrouter_pl.scorers.SCORERS`, or the import path of a scorer's class.
        profile: For a scorer with head weights: a profile's name or path.
        router: For a scorer that routes: a name of :data:`headrouter_pl.routers.ROUTERS`; its own if None.
        types: Instead of a router: type of a question -> type of the profile that it is given. Mapping each type
            to itself is perfect routing, mapping it to another the swapped control.
        layer: The prune layer K; the pruner's default if None.
        evict_early: Whether the pruned audio leaves the KV cache of the layers below K too, after each prefill.
        seeds: Seeds of a scorer that draws by its attribute ``seed``, which is another for each question; its answers
            are averaged over them.
        init_args: Further arguments of the scorer's class.
    """

    name: str
    scorer: str
    profile: str | None = None
    router: str | None = None
    types: Mapping[str, str] | None = None
    layer: int | None = None
    evict_early: bool = False
    seeds: Sequence[int] | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or self.name == UNPRUNED:
            raise ConfigurationError(f"A method needs a name of its own, got {self.name!r}.")
        if self.types is not None and self.router is not None:
            raise ConfigurationError(f"Method {self.name!r} has both types and a router ({self.router!r}); give one.")
        for setting, wanted, text in (
            ("types", Mapping, "a mapping of a question's type to a profile's"),
            ("seeds", Sequence, "a list of numbers"),
            ("layer", int, "a number"),
            ("init_args", Mapping, "a mapping"),
        ):
            given = getattr(self, setting)
            if given is not None and not isinstance(given, wanted):
                raise ConfigurationError(f"Method {self.name!r}: {setting} must be {text}, got {given!r}.")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ConfigurationError(f"Method {self.name!r} needs seeds that differ, got {list(self.seeds)}.")

    @property
    def routing(self) -> str | None:
        """The router's name; ``"true"`` where each question is given its own type or family, or ``"fixed"``.

        Where the method names no router, that is the scorer's own; None for a scorer that does not route, or by an
        import path, whose router is not known here.
        """
        if self.types is None:
            return self.router or self.init_args.get("router") or _USUAL_ROUTERS.get(self.scorer)
        return "true" if all(given in (kind, family_of(kind)) for kind, given in self.types.items()) else "fixed"


def evidence_recall(kept: ArrayLike, spans: Sequence[tuple[int, int]], seen: int) -> float | None:
    """Share of the evidence that was kept.

    Args:
        kept: int ``[k]``, the audio tokens kept, counted from the first one.
        spans: ``(first, last exclusive)`` of the audio tokens that must be heard; they may overlap.
        seen: Audio tokens there were.

    Returns:
        In [0, 1], or None if no audio token is evidence.

    Example:
        >>> evidence_recall([0, 4, 5], [(3, 6), (4, 7)], 10)
        0.5
    """
    evidence = np.zeros(seen, dtype=bool)
    for first, last in spans:
        evidence[first:last] = True
    if not evidence.any():
        return None
    return float(evidence[np.asarray(kept, dtype=np.int64)].sum() / evidence.sum())


@dataclass(frozen=True)
class _Answers:
    """Answers of one method at one ratio to n questions, averaged over seeds; float ``[n]`` each."""

    right: Floats
    same: Floats
    valid: Floats
    applied: Floats
    cost: Floats
    recall: Floats  # NaN where nothing is evidence


def summarize(
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[Method],
    keep_ratios: Sequence[float],
    *,
    tested: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Figures of a comparison, of the questions that every method has answered at every ratio.

    Args:
        rows: One an answer: ``item`` (key of the question), ``task``, ``type``, ``seconds``, ``method``, ``seed``,
            ``keep_ratio``, ``applied_ratio``, ``text``, ``right``, ``valid``, ``evidence_recall``, ``route``,
            ``prefill_seconds`` and ``unpruned_seconds``.
        methods: The methods.
        keep_ratios: The ratios they ran at, all below 1.
        tested: Names of methods to test against all others.
        resamples: Of the bootstrap.

    Returns:
        - ``questions``: how many.
        - ``rows``: ``method``, ``scorer``, ``profile``, ``router``, ``keep_ratio``, ``applied_ratio`` (mean), ``type``,
          ``task``, ``n``, ``accuracy``, ``agreement`` (share of answers that are, to the letter, those of the unpruned
          model, right or wrong), ``lost`` and ``gained`` (numbers of questions that the unpruned model alone gets
          right, or wrong), ``percent_of_unpruned``, ``cost`` (median of pruned / unpruned prefill time of the same
          question), ``evidence_recall`` and ``invalid`` (share of answers that are none; they count as wrong).
          Rows with task ``"mean"`` hold means over the tasks of a type or of ``"all"``; they also have
          ``accuracy_band`` (95 % interval of the difference to the unpruned model, about the unpruned accuracy),
          ``percent_ci95``, ``percent_of_mean`` (the mean accuracy in percent of the unpruned one, for one task that is
          hardly ever answered can move a mean of shares by itself), ``percent_of_mean_ci95``, and ``percent_by_third``
          (the same on three disjoint thirds of the audios).
        - ``lengths``: the same means for each length of audio, and for all of a minute or more, under ``length_s``.
        - ``tests``: ``a``, ``b``, ``keep_ratio``, ``type``, ``n``, ``difference`` (of accuracy), ``ci95``, ``p``, and
          of agreement ``agreement_difference``, ``agreement_ci95``, ``agreement_p``.
        - ``routes``: for each method that routes and each type of question that its profile knows, or its family,
          ``n``, ``histogram`` (questions by the probability that this type was given, in ten equal bins) and ``mean``
          (type -> mean probability).
    """
    by_run: dict[tuple[str, float], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        by_run.setdefault((row["method"], row["keep_ratio"]), {}).setdefault(row["item"], []).append(row)
    wanted = {(UNPRUNED, 1.0): 1} | {
        (method.name, ratio): len(method.seeds or (None,)) for method in methods for ratio in keep_ratios
    }
    first = by_run.get((UNPRUNED, 1.0), {})
    whole = [
        item for item in first if all(len(by_run.get(run, {}).get(item, ())) == count for run, count in wanted.items())
    ]
    items = [first[item][0] for item in whole]
    full = [item["text"] for item in items]
    found = {run: _answers([by_run[run][item] for item in whole], full) for run in wanted} if items else {}
    figures: dict[str, Any] = {"questions": len(items), "rows": [], "lengths": [], "tests": [], "routes": []}
    if not items:
        return figures
    known = {method.name: method for method in methods}
    kinds = list(dict.fromkeys(item["type"] for item in items))
    thirds = _thirds([_audio(item) for item in items])
    every = np.arange(len(items))
    runs = list(found)
    for kind in (*kinds, "all"):
        part = every if kind == "all" else np.array([i for i in every if items[i]["type"] == kind])
        means = _means(part, items, found, resamples)
        for run, answers in found.items():
            label = _label(run, known) | {"type": kind}
            if kind != "all":
                for task, at in parts_of([items[i]["task"] for i in part]).items():
                    figures["rows"].append(label | {"task": task} | _plain(part[at], items, answers, found))
            by_third = [_percent_of_mean(part[thirds[part] == third], items, answers, found) for third in range(3)]
            figures["rows"].append(label | {"task": "mean"} | means.figures[run] | {"percent_by_third": by_third})
        for a in tested:
            for ratio in keep_ratios:
                for b in (UNPRUNED, *known):
                    if b != a:
                        one, other = runs.index((a, ratio)), runs.index((b, 1.0 if b == UNPRUNED else ratio))
                        pair = {"a": a, "b": b, "keep_ratio": ratio, "type": kind, "n": len(part)}
                        figures["tests"].append(
                            pair | means.accuracy.test(one, other) | means.agreement.test(one, other, "agreement_")
                        )
        for name, lengths in _lengths(items):
            there = np.array([i for i in part if round(items[i]["seconds"]) in lengths], dtype=np.int64)
            if len(there):
                of_length = _means(there, items, found, resamples).figures
                figures["lengths"] += [
                    _label(run, known) | {"type": kind, "task": "mean", "length_s": name} | of_length[run]
                    for run in runs
                ]
    if keep_ratios:
        chosen = [
            (method.name, [by_run[method.name, max(keep_ratios)][item][0] for item in whole]) for method in methods
        ]
        figures["routes"] = [route for name, answered in chosen for route in _routes(name, answered, kinds)]
    return figures


def _answers(by_item: Sequence[Sequence[Mapping[str, Any]]], full: Sequence[str]) -> _Answers:
    """Of the answers to each question, and of what the unpruned model said to it."""

    def mean(of: Any) -> Floats:
        return np.array([[of(row) for row in rows] for rows in by_item], dtype=float).mean(1)

    same = [[row["text"] == text for row in rows] for rows, text in zip(by_item, full, strict=True)]
    return _Answers(
        right=mean(lambda row: row["right"]),
        same=np.array(same, dtype=float).mean(1),
        valid=mean(lambda row: row["valid"]),
        applied=mean(lambda row: row["applied_ratio"]),
        cost=mean(lambda row: row["prefill_seconds"] / row["unpruned_seconds"]),
        recall=mean(lambda row: np.nan if row["evidence_recall"] is None else row["evidence_recall"]),
    )


def _label(run: tuple[str, float], known: Mapping[str, Method]) -> dict[str, Any]:
    name, ratio = run
    method = known.get(name)
    return {
        "method": name,
        "scorer": UNPRUNED if method is None else method.scorer,
        "profile": None if method is None else method.profile,
        "router": None if method is None else method.routing,
        "keep_ratio": ratio,
    }


_Found = Mapping[tuple[str, float], _Answers]
_Items = Sequence[Mapping[str, Any]]


def _plain(part: NDArray[np.int64], items: _Items, answers: _Answers, found: _Found) -> dict[str, Any]:
    """Figures of some questions, each task counting alike."""
    tasks = [items[i]["task"] for i in part]
    full = found[UNPRUNED, 1.0].right[part]
    heard = part[~np.isnan(answers.recall[part])]
    recall = mean_over_tasks(answers.recall[heard], [items[i]["task"] for i in heard]) if len(heard) else None
    return {
        "applied_ratio": round(float(answers.applied[part].mean()), 4),
        "n": len(part),
        "accuracy": round(float(mean_over_tasks(answers.right[part], tasks)), 4),
        "agreement": round(float(mean_over_tasks(answers.same[part], tasks)), 4),
        "lost": round(float((full * (1 - answers.right[part])).sum()), 2),
        "gained": round(float(((1 - full) * answers.right[part]).sum()), 2),
        "percent_of_unpruned": _percent(part, items, answers, found),
        "cost": round(float(np.median(answers.cost[part])), 4),
        "evidence_recall": None if recall is None else round(float(recall), 4),
        "invalid": round(float(1 - answers.valid[part].mean()), 4),
    }


def _percent(part: NDArray[np.int64], items: _Items, answers: _Answers, found: _Found) -> float | None:
    if not len(part):
        return None
    full = found[UNPRUNED, 1.0].right[part]
    percent = percent_of_unpruned(answers.right[part], full, [items[i]["task"] for i in part])
    return None if percent is None else round(percent, 2)


def _percent_of_mean(part: NDArray[np.int64], items: _Items, answers: _Answers, found: _Found) -> float | None:
    if not len(part):
        return None
    tasks = [items[i]["task"] for i in part]
    pruned, full = (float(mean_over_tasks(one.right[part], tasks)) for one in (answers, found[UNPRUNED, 1.0]))
    return round(100 * pruned / full, 2) if full else None


@dataclass(frozen=True)
class _Drawn:
    """A mean over tasks under C methods.

    Attributes:
        exact: ``[C]``.
        drawn: Its resamples ``[R, C]``.
    """

    exact: Floats
    drawn: Floats

    def test(self, one: int, other: int, prefix: str = "") -> dict[str, Any]:
        """The difference between two of the methods, its interval and p, named with a prefix."""
        found = difference_of(float(self.exact[one] - self.exact[other]), self.drawn[:, one] - self.drawn[:, other])
        return {
            f"{prefix}difference": round(found.difference, 4),
            f"{prefix}ci95": [round(bound, 4) for bound in found.ci95],
            f"{prefix}p": round(found.p, 5),
        }


@dataclass(frozen=True)
class _Means:
    """Means over tasks of C runs on some questions: run -> its figures, and what tests need."""

    figures: Mapping[tuple[str, float], dict[str, Any]]
    accuracy: _Drawn
    agreement: _Drawn


def _means(part: NDArray[np.int64], items: _Items, found: _Found, resamples: int) -> _Means:
    tasks = [items[i]["task"] for i in part]
    values, same = (
        np.stack([getattr(answers, name)[part] for answers in found.values()], axis=1) for name in ("right", "same")
    )
    first = list(found).index((UNPRUNED, 1.0))
    exact = mean_over_tasks(values, tasks)
    weights = resample_weights(tasks, [_audio(items[i]) for i in part], resamples=resamples)
    drawn, percents = resample(values, values[:, first], tasks, weights)
    bounds = np.quantile(drawn - drawn[:, [first]], (0.025, 0.975), axis=0)
    percents = percents[~np.isnan(percents).any(1)]
    shares = np.quantile(percents, (0.025, 0.975), axis=0) if len(percents) else None
    answered = drawn[drawn[:, first] > 0]
    of_mean = answered / answered[:, [first]]
    of_means = np.quantile(100 * of_mean, (0.025, 0.975), axis=0) if len(of_mean) else None
    return _Means(
        {
            run: _plain(part, items, answers, found)
            | {
                "accuracy_band": [round(float(exact[first] + bound), 4) for bound in bounds[:, i]],
                "percent_ci95": _bounds(shares, i),
                "percent_of_mean": _percent_of_mean(part, items, answers, found),
                "percent_of_mean_ci95": _bounds(of_means, i),
            }
            for i, (run, answers) in enumerate(found.items())
        },
        _Drawn(exact, drawn),
        _Drawn(mean_over_tasks(same, tasks), weights @ same),
    )


def _bounds(found: Floats | None, column: int) -> list[float] | None:
    return None if found is None else [round(float(bound), 2) for bound in found[:, column]]


def _audio(item: Mapping[str, Any]) -> str:
    """What an item is asked about: its key is that and the task."""
    return str(item["item"].rsplit("/", 1)[0])


def _thirds(audios: Sequence[str]) -> NDArray[np.int64]:
    """Which third each question is in: those about one audio together, audios drawn once and for all."""
    known = sorted(set(audios))
    number = dict(zip(known, np.random.default_rng(0).permutation(len(known)) % 3, strict=True))
    return np.array([number[audio] for audio in audios])


def _lengths(items: _Items) -> Iterator[tuple[int | str, Collection[int]]]:
    present = sorted({round(item["seconds"]) for item in items})
    for seconds in present:
        yield seconds, (seconds,)
    long = [seconds for seconds in present if seconds >= 60]
    if len(long) > 1:
        yield f"{long[0]}-{long[-1]}", long


def _routes(name: str, answered: _Items, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        routes = [row["route"] for row in answered if row["type"] == kind and row["route"]]
        right = type_among(kind, routes[0]) if routes else None
        if right is None:  # not routed, or a profile of other types
            continue
        own = [route[right] for route in routes]
        yield {
            "method": name,
            "type": kind,
            "n": len(routes),
            "histogram": np.histogram(own, bins=10, range=(0, 1))[0].tolist(),
            "mean": {given: round(float(np.mean([route[given] for route in routes])), 4) for given in routes[0]},
        }
