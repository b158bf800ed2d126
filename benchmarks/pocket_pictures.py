"""Draws what the pocket model says for what, and the learning curves of its training.

    python benchmarks/pocket_pictures.py --evaluation docs/data/pocket_eval.json
    python benchmarks/pocket_pictures.py --logs outputs --output docs/data/pocket_training.json

The evaluation is that of ``headrouter-pl evaluate --output``, the logs those that ``scripts/train_pocket.sh`` leaves.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from headrouter_pl.cli.tables import dump_figures
from headrouter_pl.results import write_text

ANSWERS = 20  # of a task, at most, that are shown
RUNS = {"pocket_encoder": "encoder", "pocket": "decoder", "pocket_scenes": "fuller audio"}


def main() -> None:
    """Writes ``pocket_confusions.png``, or ``pocket_curve.png`` and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--logs", type=Path, help="the folder with a folder of logs for each run")
    parser.add_argument("--output", type=Path, help="file for the figures of the logs")
    parser.add_argument("--folder", default=Path("docs/images"), type=Path)
    given = parser.parse_args()
    if given.evaluation is None and given.logs is None:
        parser.error("nothing to draw: give --evaluation or --logs")
    if given.evaluation is not None:
        confusions = json.loads(given.evaluation.read_text(encoding="utf-8"))["confusions"]
        draw_confusions(confusions).savefig(given.folder / "pocket_confusions.png")
    if given.logs is not None:
        runs = {run: read_validation(given.logs / run) for run in RUNS}
        if given.output is not None:
            command = shlex.join(["python", "benchmarks/pocket_pictures.py", *sys.argv[1:]])
            rows = [{"run": run, **row} for run, found in runs.items() for row in found]
            write_text(given.output, dump_figures({"command": command, "rows": rows}))
        draw_curves(runs).savefig(given.folder / "pocket_curve.png")


def read_validation(folder: Path) -> list[dict[str, float]]:
    """What a run's validation measured, by step; a run that was stopped has several logs, of which the later count."""
    logs = sorted(folder.glob("version_*/metrics.csv"), key=lambda log: int(log.parent.name.removeprefix("version_")))
    if not logs:
        raise SystemExit(f"{folder} holds no logs")
    found: dict[int, dict[str, float]] = {}
    for log in logs:
        with log.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                scores = {
                    name.removeprefix("val/"): round(float(v), 4) for name, v in row.items() if v and "val/" in name
                }
                if scores:
                    step = int(row["step"]) + 1
                    found[step] = {"step": step, **scores}
    return [found[step] for step in sorted(found)]


def draw_confusions(confusions: dict[str, list[dict[str, Any]]]) -> Figure:
    """What was said for what, a square for each task that misses a target.

    Of tasks with many answers those asked for most are shown; what is none of them is in the last column.
    """
    columns = 2
    lines = -(-len(confusions) // columns)
    figure = Figure(figsize=(13, 6 * lines), layout="constrained", dpi=90)
    squares = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in squares[len(confusions) :]:
        axes.remove()
    for axes, (task, pairs) in zip(squares, confusions.items(), strict=False):
        asked = Counter[str]()
        for pair in pairs:
            asked[pair["right"]] += pair["n"]
        right = sorted(name for name, _ in asked.most_common(ANSWERS))
        said = [*right, "other"]
        counts = np.zeros((len(right), len(said)), dtype=int)
        for pair in pairs:
            if pair["right"] in right:
                answer = pair["said"] if pair["said"] in right else "other"
                counts[right.index(pair["right"]), said.index(answer)] += pair["n"]
        axes.imshow(counts, cmap="Blues")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if count > counts.max() / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=shade)
        axes.set_xticks(range(len(said)), said, rotation=90, fontsize=8)
        axes.set_yticks(range(len(right)), right, fontsize=8)
        axes.set_title(f"{task}, n = {counts.sum()}" + (f" of {asked.total()}" if len(asked) > len(right) else ""))
        axes.set_xlabel("said")
        axes.set_ylabel("right")
    return figure


def draw_curves(runs: dict[str, list[dict[str, float]]]) -> Figure:
    """Share of right answers to each task over the steps of each run."""
    figure = Figure(figsize=(13, 6), layout="constrained", dpi=90)
    for axes, (run, rows) in zip(np.atleast_1d(figure.subplots(1, len(runs), sharey=True)), runs.items(), strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]  # more tasks than colours
        for task in sorted({name for row in rows for name in row} - {"step", "loss", "ctc"}):
            points = [(row["step"], row[task]) for row in rows if task in row]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=task)
        axes.set_title(RUNS[run])
        axes.set_xlabel("step")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.supylabel("share right, validation windows")
    return figure


if __name__ == "__main__":
    main()
