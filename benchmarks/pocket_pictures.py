"""Draws the confusion matrices of an evaluation of the pocket model, and a learning curve over several.

    python benchmarks/pocket_pictures.py docs/data/pocket_eval.json --folder docs/images \
        --curve 1200=first.json 1400=second.json 2706=third.json 3456=fourth750.json 3905=fourth.json

The files are those of ``headrouter-pl evaluate --output``; of the curve, each of ``--checkpoint`` at a number of steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

TASKS = ("language", "speaker", "sound", "instrument")


def main() -> None:
    """Writes ``pocket_confusions.png``, and ``pocket_curve.png`` if there is a curve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--folder", default=Path("docs/images"), type=Path)
    parser.add_argument("--curve", nargs="*", default=[], metavar="STEPS=FILE")
    given = parser.parse_args()
    confusions = json.loads(given.evaluation.read_text(encoding="utf-8"))["confusions"]
    draw_confusions(confusions).savefig(given.folder / "pocket_confusions.png")
    if given.curve:
        points = [(int(steps), Path(name)) for steps, _, name in (entry.partition("=") for entry in given.curve)]
        evaluations = {steps: json.loads(path.read_text(encoding="utf-8")) for steps, path in sorted(points)}
        draw_curve(evaluations).savefig(given.folder / "pocket_curve.png")


def draw_confusions(confusions: dict[str, list[dict[str, Any]]]) -> Figure:
    """What was said for what, a square for each task; answers that are none of the task's are in the last column."""
    figure = Figure(figsize=(13, 12), layout="constrained", dpi=90)
    for axes, task in zip(figure.subplots(2, 2).flat, TASKS, strict=True):
        pairs = [(row["right"], row["said"], row["n"]) for row in confusions[task]]
        right = sorted({pair[0] for pair in pairs})
        said = [*right, "other"]
        counts = np.zeros((len(right), len(said)), dtype=int)
        for was, answer, count in pairs:
            counts[right.index(was), said.index(answer if answer in right else "other")] += count
        axes.imshow(counts, cmap="Blues")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if count > counts.max() / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=shade)
        axes.set_xticks(range(len(said)), said, rotation=90, fontsize=8)
        axes.set_yticks(range(len(right)), right, fontsize=8)
        axes.set_title(f"{task}, n = {counts.sum()}")
        axes.set_xlabel("said")
        axes.set_ylabel("right")
    return figure


def draw_curve(evaluations: dict[int, dict[str, Any]]) -> Figure:
    """Share of right answers of each type of question over the steps of training."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=90)
    axes = figure.add_subplot()
    for kind in ("semantic", "voice", "sound"):
        found = [
            row for evaluation in evaluations.values() for row in evaluation["rows"]
            if (row["task"], row["type"], row["length_s"]) == ("all", kind, "8-15")
        ]  # fmt: skip
        shares = [row["accuracy"] for row in found]
        axes.plot(list(evaluations), shares, marker="o", label=f"{kind}, n = {found[0]['n']}")
    axes.set_xlabel("steps of training")
    axes.set_ylabel(f"share right, {next(iter(evaluations.values()))['split']} split, 8-15 s")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
