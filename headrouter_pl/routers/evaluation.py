"""How well, and how honestly, a prompt router predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.model_selection import StratifiedKFold

from headrouter_pl.routers.prompt import PromptRouter, shipped_prompts


def evaluate(
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    heldout: Sequence[Mapping[str, str]] | None = None,
    router: PromptRouter | None = None,
    folds: int = 5,
    repeats: int = 1,
    random_state: int = 0,
) -> dict[str, Any]:
    """Cross-validates a prompt router, at the grain of families and of types.

    Args:
        prompts: n prompts.
        labels: Their types or families.
        languages: Their languages, for accuracies per language.
        tasks: Their tasks, for accuracies per task.
        heldout: Records with ``prompt`` and ``type`` (and ``language``, ``task``) that no fold is fitted on;
            scored by a router fitted on all n prompts.
        router: The estimator to clone for each fold. ``PromptRouter()`` when ``None``.
        folds: Stratified by label.
        repeats: Cross-validations with different shuffles; their predictions are pooled.
        random_state: Seed of the first shuffle; repeat r uses ``random_state + r``.

    Returns:
        Plain values, ready for JSON: ``folds``, ``repeats``, ``classes``, ``types`` and the blocks
        ``cross_validated`` and, if asked for, ``heldout``. A block holds ``n``, ``family`` and ``type`` (each
        ``accuracy``, its standard error ``accuracy_se``, ``majority``, i.e. the accuracy of always naming the
        most frequent class, ``log_loss`` in nats, ``ece``, ``ece_bins`` and ``confusion``, truth in rows),
        and ``languages`` and ``tasks`` (``{name: {"n", "family_accuracy", "type_accuracy"}}``).

    Raises:
        ValueError: If lengths differ, or ``repeats`` is below one.
    """
    for name, values in (("labels", labels), ("languages", languages), ("tasks", tasks)):
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"Got {len(prompts)} prompts and {len(values)} {name}; give one per prompt.")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    router = PromptRouter() if router is None else router
    texts, truth = np.array(prompts, dtype=object), np.array(labels, dtype=object)
    full = clone(router).fit(prompts, labels)
    proba = np.empty((repeats, len(texts), len(full.types_)))
    for repeat in range(repeats):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=random_state + repeat)
        for train, test in splitter.split(texts, truth):
            fold = clone(router).fit(texts[train], truth[train])
            proba[repeat, test] = fold.predict_type_proba(texts[test])
    groups: dict[str, Sequence[str] | None] = {"languages": languages, "tasks": tasks}
    report: dict[str, Any] = {
        "folds": folds,
        "repeats": repeats,
        "classes": full.classes_.tolist(),
        "types": full.types_.tolist(),
        "cross_validated": _block(full, proba, list(labels), groups),
    }
    if heldout:
        keys = ("prompt", "type", "language", "task")
        columns = {key: [str(record.get(key, "")) for record in heldout] for key in keys}
        unseen = sorted(set(columns["type"]) - set(full.types_))
        if unseen:
            raise ValueError(f"Held-out types {unseen} are not among the fitted ones {full.types_.tolist()}.")
        groups = {name: columns[key] for name, key in (("languages", "language"), ("tasks", "task"))}
        proba = full.predict_type_proba(columns["prompt"])[None]
        report["heldout"] = _block(full, proba, columns["type"], groups)
    return report


def evaluate_shipped(*, folds: int = 5, repeats: int = 1, random_state: int = 0) -> dict[str, Any]:
    """Evaluates the default router on the shipped prompts, and on those kept apart from them.

    Args:
        folds: As in :func:`evaluate`.
        repeats: As in :func:`evaluate`.
        random_state: As in :func:`evaluate`.
    """
    records = shipped_prompts()
    return evaluate(
        [r["prompt"] for r in records],
        [r["type"] for r in records],
        languages=[r["language"] for r in records],
        tasks=[r["task"] for r in records],
        heldout=shipped_prompts(heldout=True),
        folds=folds,
        repeats=repeats,
        random_state=random_state,
    )


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, over bins of equal mass.

    Equal mass, not equal width: a text classifier is mostly sure, and low bins would hold few prompts.

    Args:
        confidence: Probability of the predicted class, shape ``[n]``.
        correct: Whether that class was right, shape ``[n]``.
        bins: At most n are used.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(abs((confidence[p] - correct[p]).sum()) for p in parts) / len(order))


def format_report(report: Mapping[str, Any]) -> str:
    """Renders the result of :func:`evaluate` as plain text tables."""
    title = f"{report['folds']}-fold cross-validation"
    if report["repeats"] > 1:
        title += f", {report['repeats']} times"
    lines: list[str] = []
    for key, name in (("cross_validated", title), ("heldout", "held-out prompts")):
        if key in report:
            lines += [*_format_block(report[key], name, report["classes"], report["types"]), ""]
    return "\n".join(lines[:-1])


def _block(
    router: PromptRouter,
    proba: NDArray[np.float64],
    labels: list[str],
    groups: Mapping[str, Sequence[str] | None],
) -> dict[str, Any]:
    """Scores type probabilities of shape ``[repeats, n, T]``."""
    repeats, n, _ = proba.shape
    types, classes = router.types_.tolist(), router.classes_.tolist()
    family_of = [classes.index(router.families_[name]) for name in types]
    truth = np.tile([types.index(label) for label in labels], repeats)
    type_proba = proba.reshape(repeats * n, -1)
    family_proba = type_proba @ np.eye(len(classes))[family_of]
    type_grain, type_hits = _grain(type_proba, truth, n)
    family_grain, family_hits = _grain(family_proba, np.array(family_of)[truth], n)
    block: dict[str, Any] = {"n": n, "family": family_grain, "type": type_grain}
    for group, values in groups.items():
        if values is None or not any(values):
            continue
        tiled = np.tile(np.array(values, dtype=object), repeats)
        block[group] = {
            name: {
                "n": int((tiled == name).sum()) // repeats,
                "family_accuracy": float(family_hits[tiled == name].mean()),
                "type_accuracy": float(type_hits[tiled == name].mean()),
            }
            for name in sorted(set(values))
        }
    return block


def _grain(proba: NDArray[np.float64], truth: NDArray[np.int_], n: int) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Scores probabilities of shape ``[repeats * n, classes]`` against class numbers."""
    predicted = proba.argmax(axis=1)
    hits = predicted == truth
    labels = list(range(proba.shape[1]))
    accuracy = float(hits.mean())
    bins = min(15, max(1, n // 20))  # fewer than 20 prompts in a bin and the error is mostly noise
    scores = {
        "accuracy": accuracy,
        "accuracy_se": float(np.sqrt(accuracy * (1.0 - accuracy) / n)),  # n, as repeats share the prompts
        "majority": float(np.bincount(truth).max() / len(truth)),
        "log_loss": float(log_loss(truth, proba, labels=labels)),
        "ece": expected_calibration_error(proba.max(axis=1), hits, bins),
        "ece_bins": bins,
        "confusion": confusion_matrix(truth, predicted, labels=labels).tolist(),
    }
    return scores, hits


def _format_block(block: Mapping[str, Any], title: str, classes: list[str], types: list[str]) -> list[str]:
    lines = [f"{title}, n = {block['n']}"]
    lines.append(f"{'':10}{'accuracy':>16}{'majority':>10}{'log loss':>10}{'ECE':>8}")
    for grain in ("family", "type"):
        s = block[grain]
        accuracy = f"{s['accuracy']:.3f} ± {s['accuracy_se']:.3f}"
        lines.append(f"{grain:10}{accuracy:>16}{s['majority']:>10.3f}{s['log_loss']:>10.3f}{s['ece']:>8.3f}")
    for grain, names in (("family", classes), ("type", types)):
        width = max(map(len, names)) + 2
        lines += ["", f"{grain} confusion (rows: truth, columns: predicted)"]
        lines.append(" " * width + "".join(f"{name:>{width}}" for name in names))
        for name, row in zip(names, block[grain]["confusion"], strict=True):
            lines.append(f"{name:{width}}" + "".join(f"{count:>{width}}" for count in row))
    for group in ("languages", "tasks"):
        if group in block:
            width = max(map(len, [group, *block[group]])) + 2
            lines += ["", f"{group:{width}}{'n':>5}{'family':>8}{'type':>8}"]
            for name, s in block[group].items():
                lines.append(f"{name:{width}}{s['n']:>5}{s['family_accuracy']:>8.3f}{s['type_accuracy']:>8.3f}")
    return lines
