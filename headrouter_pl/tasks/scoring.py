"""Scores of samples of several tasks in one run: a row for each sample, and what the rows come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torchmetrics import Metric

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.task_types import FAMILIES
from headrouter_pl.tasks import TASKS, Task, get_task
from headrouter_pl.tasks.metrics import Rows

Batch = Mapping[str, Any]


def batch_tasks(batch: Batch, default: Task) -> list[Task]:
    """The task of each sample with inputs: ``batch["task_names"]``, or ``default`` where that is missing or empty."""
    names = batch.get("task_names") or [""] * len(batch["keys"])
    return [default if not name or name == default.name else get_task(name) for name in names]


def parse_batch(batch: Batch, texts: Sequence[str], default: Task) -> list[str | None]:
    """The answer read out of each text."""
    tasks, options = batch_tasks(batch, default), batch.get("options") or [()] * len(texts)
    return [task.parse(text, given) for task, text, given in zip(tasks, texts, options, strict=True)]


def score_batch(batch: Batch, texts: Sequence[str], default: Task) -> list[dict[str, Any]]:
    """A row for each sample of a batch, those whose audio could not be used included.

    Args:
        batch: ``keys`` and ``answers``; may have ``task_names``, ``options``, ``cut_seconds`` and ``failures``.
        texts: What the model said, for each key.
        default: Task of samples that name none.

    Returns:
        Rows of ``key``, ``task``, ``text``, ``answer`` (None if unreadable), ``target``, ``score`` (of this sample
        alone: 100 at best, 0 for a wrong answer, and below 0 for a transcript with more errors than words),
        ``cut_seconds`` and ``failure`` (None, or why there is no answer).
    """
    tasks, options = batch_tasks(batch, default), batch.get("options") or [()] * len(texts)
    cut = batch.get("cut_seconds") or [0.0] * len(texts)
    rows = [
        _row(key, task, text, task.parse(text, given), _target(task, answer, given), seconds, None)
        for key, task, text, answer, given, seconds in zip(
            batch["keys"], tasks, texts, batch["answers"], options, cut, strict=True
        )
    ]
    for failed in batch.get("failures") or ():
        (task,) = batch_tasks({"keys": [failed["key"]], "task_names": [failed["task"]]}, default)
        target = _target(task, failed["answer"], failed["options"])
        rows.append(_row(failed["key"], task, "", None, target, 0.0, failed["error"]))
    return rows


def _target(task: Task, answer: str, options: Sequence[str]) -> str:
    if options and not task.reads_letters:  # others read both letters and texts
        with suppress(ValueError):
            answer = task.right_answer(answer, options)
    parsed = task.parse(answer, options)
    return answer if parsed is None else parsed


def _row(
    key: str, task: Task, text: str, answer: str | None, target: str, cut: float, failure: str | None
) -> dict[str, Any]:
    return {
        "key": key, "task": task.name, "text": text, "answer": answer, "target": target,
        "score": _score(_computed(task.metric(), [answer], [target])), "cut_seconds": cut, "failure": failure,
    }  # fmt: skip


class TaskScores(Rows):
    """Scores of every task among the samples, the same on every process.

    ``compute`` is fed each sample once: a distributed sampler repeats samples until all processes have as many, and a
    sample of another process whose task, key and right answer were there already is left out; samples without a key are
    all kept. Metrics are computed over the rows of all processes, so they need not be of a kind that adds up.

    Args:
        tasks: Tasks that are not in :data:`headrouter_pl.tasks.TASKS`.
    """

    def __init__(self, *tasks: Task) -> None:
        super().__init__()
        self.given = {task.name: task for task in tasks}

    def update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps rows of :func:`score_batch`."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self.add([{**row, "rank": rank} for row in rows])

    def compute(self) -> dict[str, Any]:
        """``samples``: the rows, by task and key; and what :func:`summarize` says of them."""
        seen: dict[tuple[str, str, str], int] = {}
        rows = []
        for row in self.rows():
            rank = row.pop("rank")
            if not row["key"] or seen.setdefault((row["task"], row["key"], row["target"]), rank) == rank:
                rows.append(row)
        rows.sort(key=lambda row: (row["task"], row["key"]))
        return {"samples": rows, **summarize(rows, self.given)}


class PackedScores(Rows):
    """Means over packed validation: the loss, and the share of right answers of each task, the same on every process.

    As in :class:`TaskScores`, what a second process has heard again is left out.
    """

    def update(self, keys: Sequence[str], loss: float, tasks: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
        """Keeps a batch.

        Args:
            keys: Of its rows.
            loss: Of its answers.
            tasks: Of each row, the tasks of its questions.
            right: Whether each question was answered, row by row.
        """
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        asked = [
            (task, f"{key} {number}" if key else "")
            for key, row in zip(keys, tasks, strict=True)
            for number, task in enumerate(row)
        ]
        values = [("loss", " ".join(keys).strip(), loss, len(asked))] if asked else []
        values += [(task, key, float(ok), 1) for (task, key), ok in zip(asked, right, strict=True)]
        self.add([[*value, rank] for value in values])

    def compute(self) -> dict[str, float]:
        """``"loss"``, each batch weighing as many as it has questions, and a mean for each task."""
        seen: dict[tuple[str, str], int] = {}
        sums: dict[str, tuple[float, int]] = {}
        for name, key, value, weight, rank in self.rows():
            if not key or seen.setdefault((name, key), rank) == rank:
                total, count = sums.get(name, (0.0, 0))
                sums[name] = total + weight * value, count + weight
        return {name: total / count for name, (total, count) in sorted(sums.items())}


def summarize(rows: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task] | None = None) -> dict[str, Any]:
    """Results of the tasks among the rows.

    Args:
        rows: Of :func:`score_batch`, each sample once.
        tasks: Tasks that are not in :data:`headrouter_pl.tasks.TASKS`, by name.

    Returns:
        ``tasks``: by name, ``n``, ``invalid`` (answers that could not be read), ``failed`` (no usable audio), ``cut``
        (samples whose audio was cut) and ``cut_seconds``, the ``metric``'s name and ``value``, other metrics, and the
        ``score``: the value in percent, 100 minus that where lower is better, which is below 0 at a word error rate
        above 1. ``types`` and ``families``: mean score of their tasks. ``average``: mean score of all tasks;
        ``average_by_sample``: weighted by ``n``.
    """
    found: dict[str, Any] = {}
    order = {name: place for place, name in enumerate(TASKS)}
    for name in sorted({row["task"] for row in rows}, key=lambda name: (order.get(name, len(order)), name)):
        task = (tasks or {}).get(name) or get_task(name)
        mine = [row for row in rows if row["task"] == name]
        answers, targets = [row["answer"] for row in mine], [row["target"] for row in mine]
        metric = _computed(task.metric(), answers, targets)
        failed = sum(row["failure"] is not None for row in mine)
        found[name] = {
            "type": task.type,
            "family": task.family,
            "n": len(mine),
            "invalid": sum(row["answer"] in (None, "") for row in mine) - failed,
            "failed": failed,
            "cut": sum(row["cut_seconds"] > 0 for row in mine),
            "cut_seconds": sum(row["cut_seconds"] for row in mine),
            "metric": type(metric).__name__,
            "value": float(metric.compute()),
            "score": _score(metric),
            **{also: float(_computed(make(), answers, targets).compute()) for also, make in task.also.items()},
        }
    total = sum(result["n"] for result in found.values())
    return {
        "tasks": found,
        "types": _means(found, "type"),
        "families": _means(found, "family"),
        "average": _mean([result["score"] for result in found.values()]),
        "average_by_sample": sum(result["score"] * result["n"] for result in found.values()) / max(total, 1),
    }


def percent_of(results: Mapping[str, Any], unpruned: Mapping[str, Any]) -> dict[str, Any]:
    """Scores in percent of another run's: ``tasks``, ``families`` and ``average``, means of the tasks' percentages.

    Tasks that the other run scored 0 in have none.

    Raises:
        ConfigurationError: If the other run is not of the same tasks and numbers of samples.
    """
    ours, theirs = results["tasks"], unpruned["tasks"]
    wrong = [
        f"{name}: {theirs.get(name, {}).get('n', 0)} samples, here {ours.get(name, {}).get('n', 0)}"
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or ours[name]["n"] != theirs[name]["n"]
    ]
    if wrong:
        raise ConfigurationError(f"The unpruned run is of other samples ({'; '.join(wrong)}); give one of the same.")
    # Of a score of 0, nothing is a percentage.
    percent = {name: 100 * ours[name]["score"] / theirs[name]["score"] for name in ours if theirs[name]["score"] > 0}
    return _over_tasks(percent, ours)


def _said(row: Mapping[str, Any]) -> tuple[str | None, str]:
    return row["answer"], row["text"] if row["answer"] is None else ""


def _over_tasks(percent: Mapping[str, float], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Percentages of tasks, with their means by family and in all."""
    families = {
        family: _mean([percent[name] for name in percent if tasks[name]["family"] == family])
        for family in dict.fromkeys(tasks[name]["family"] for name in percent)
    }
    return {"tasks": percent, "families": families, "average": _mean(list(percent.values())) if percent else None}


def agreement_with(
    rows: Sequence[Mapping[str, Any]], unpruned: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> dict[str, Any]:
    """How often a run answers as another does, right or wrong, in percent of the samples.

    Two answers are the same if what was read out of them is; of answers that could not be read, if the texts are.
    Samples that have no usable audio in one of the runs do not count.

    Args:
        rows: Of :func:`score_batch`, each sample once, with keys.
        unpruned: The same of the other run.
        results: What :func:`summarize` says of ``rows``.

    Returns:
        ``tasks``, and ``families`` and ``average``, means of the tasks' percentages.

    Raises:
        ConfigurationError: If the other run is not of the same samples.
    """
    theirs = {(row["task"], row["key"]): row for row in unpruned}
    ours = {(row["task"], row["key"]): row for row in rows}
    if differing := sorted(ours.keys() ^ theirs.keys()):
        raise ConfigurationError(
            f"The unpruned run is of other samples: {len(differing)} are in one of the runs alone, the first is "
            f"{differing[0][1]!r} of {differing[0][0]}; give one of the same."
        )
    same: dict[str, list[float]] = {}
    for place, row in ours.items():
        if row["failure"] is None and theirs[place]["failure"] is None:
            same.setdefault(place[0], []).append(100.0 * (_said(row) == _said(theirs[place])))
    percent = {name: _mean(same[name]) for name in results["tasks"] if name in same}
    return _over_tasks(percent, results["tasks"])


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of cells: a task each, then the families and the averages; with what ``results`` has of an unpruned run."""
    compared = {
        title: results[name]
        for name, title in (("percent_of_unpruned", "% of unpruned"), ("agreement", "% same answers"))
        if results.get(name)
    }
    rows = []
    for name, result in results["tasks"].items():
        rows.append(
            {
                "task": name, "type": result["type"], "n": str(result["n"]), "score": f"{result['score']:.1f}",
                "metric": f"{result['metric']} {result['value']:.3f}",
                "invalid": str(result["invalid"]), "failed": str(result["failed"]),
                "cut": f"{result['cut']} ({result['cut_seconds']:.0f} s)" if result["cut"] else "0",
            }
        )  # fmt: skip
        for title, found in compared.items():
            rows[-1][title] = _cell(found["tasks"].get(name))
    means = [(name, results["families"][name]) for name in FAMILIES if name in results["families"]]
    means += [("average", results["average"]), ("average by sample", results["average_by_sample"])]
    for name, score in means:
        rows.append(dict.fromkeys(rows[0], "") | {"task": name, "score": f"{score:.1f}"})
        for title, found in compared.items():
            of = found["average"] if name == "average" else found["families"].get(name)
            rows[-1][title] = "" if name == "average by sample" else _cell(of)
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _computed(metric: Metric, answers: Sequence[str | None], targets: Sequence[str]) -> Metric:
    # Nothing to gather: the rows are one sample's, or those of all processes already.
    metric.distributed_available_fn = lambda: False
    metric.update(answers, targets)
    return metric


def _score(metric: Metric) -> float:
    if metric.higher_is_better is None:
        raise ConfigurationError(
            f"{type(metric).__name__} does not say which way it goes: set higher_is_better of the class, True or False."
        )
    value = float(metric.compute())
    return 100 * (value if metric.higher_is_better else 1 - value)


def _means(found: Mapping[str, Mapping[str, Any]], by: str) -> dict[str, float]:
    groups = dict.fromkeys(result[by] for result in found.values())
    return {group: _mean([r["score"] for r in found.values() if r[by] == group]) for group in groups}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
