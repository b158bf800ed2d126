"""What ``headrouter-pl compare`` writes: a page of tables, CSV files, and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headrouter_pl.cli.tables import format_table
from headrouter_pl.comparison import UNPRUNED
from headrouter_pl.results import write_text

PAGE = "comparison.md"
_Row = Mapping[str, Any]


def write_report(figures: Mapping[str, Any], folder: Path, drawn: Sequence[str] | None = None) -> None:
    """Writes the page, CSV files and figures, and prints the main tables.

    Args:
        figures: What ``compare`` returns, of at least one question.
        folder: For ``comparison.md``, ``rows.csv``, ``lengths.csv``, ``tests.csv``, ``accuracy.png``,
            ``agreement.png``, ``percent.png``, ``cost.png``, ``recall.png`` and, with methods that route,
            ``routes.png``.
        drawn: Methods that the figures show; all if None.
    """
    write_text(folder / PAGE, page(figures))
    print("\n\n".join(main_tables(figures)))
    for name in ("rows", "lengths", "tests"):
        path = folder / f"{name}.csv"
        if figures[name]:
            write_text(path, csv_text(figures[name]))
        else:
            path.unlink(missing_ok=True)  # of an earlier report
    (folder / "routes.png").unlink(missing_ok=True)
    draw(figures, folder, drawn)
    print(f"Written: {folder}")


def page(figures: Mapping[str, Any]) -> str:
    """All tables, as Markdown; those of single tasks are in the CSV file alone."""
    means = [row for row in figures["rows"] if row["task"] == "mean"]
    everything = [row for row in means if row["type"] == "all"]
    unknown = sorted(
        row["task"] for row in figures["rows"] if row["method"] == UNPRUNED and row["percent_of_unpruned"] is None
        and row["task"] != "mean"
    )  # fmt: skip
    parts = [
        f"# Pruning methods on the Pocket benchmark, {figures['split']} split\n\n"
        f"`{figures['command']}`\n\n"
        f"{figures['questions']} of {figures['questions_planned']} questions, weights {figures['weights']}, "
        f"{figures['dtype']}, {figures['machine']}. Means over tasks; an answer that is none counts as wrong."
        + (f" Without percent, for the unpruned model never gets them right: {', '.join(unknown)}." if unknown else ""),
        *main_tables(figures),
        *(_percent(means, kind) for kind in _single_types(means)),
    ]
    for name in dict.fromkeys(row["length_s"] for row in figures["lengths"]):
        rows = [row for row in figures["lengths"] if row["type"] == "all" and row["length_s"] == name]
        parts.append(
            f"## Audio of {name} s, n = {rows[0]['n']}\n\nAccuracy (percent of unpruned) @ cost.\n\n"
            + _by_ratio(
                rows, lambda row: f"{row['accuracy']:.3f} ({_number(row['percent_of_mean'], 1)}) @ {row['cost']:.3f}"
            )
        )
    parts += [
        "## Percent, task by task\n\nMean over tasks of pruned / unpruned accuracy, in percent, with its 95 % "
        "interval. A task that is hardly ever answered counts as much as the others: two right answers instead of one "
        "are 200.\n\n" + _by_ratio(everything, lambda row: _with_interval(row, "percent_of_unpruned", "percent_ci95")),
        "## Evidence recall\n\nShare of the audio tokens that hold the answer that was kept.\n\n"
        + _by_ratio(everything, lambda row: _number(row["evidence_recall"], 3)),
        "## Answers that are none\n\nShare of all answers.\n\n"
        + _by_ratio(everything, lambda row: f"{row['invalid']:.3f}"),
        "## Applied ratio\n\n" + _by_ratio(everything, lambda row: f"{row['applied_ratio']:.4f}"),
        "## Thirds\n\nPercent of the unpruned mean on three disjoint thirds of the audios.\n\n"
        + _by_ratio(everything, lambda row: " / ".join(_number(value, 1) for value in row["percent_by_third"])),
    ]
    for a in dict.fromkeys(test["a"] for test in figures["tests"]):
        for kind in dict.fromkeys(test["type"] for test in figures["tests"]):
            rows = [test for test in figures["tests"] if test["a"] == a and test["type"] == kind]
            parts.append(
                f"## {a} against others, {kind}, n = {rows[0]['n']}\n\n"
                "Difference of accuracy, its 95 % interval, and p, by paired bootstrap.\n\n"
                + _by_ratio(rows, _difference, "b")
            )
            if others := [test for test in rows if test["b"] != UNPRUNED]:
                parts.append(
                    "Difference of agreement with the unpruned model.\n\n"
                    + _by_ratio(others, partial(_difference, of="agreement_"), "b")
                )
    if figures["routes"]:
        table = [
            {"method": route["method"], "questions": route["type"], "n": route["n"],
             "routed to (mean probability)": ", ".join(f"{name} {share:.2f}" for name, share in route["mean"].items())}
            for route in figures["routes"]
        ]  # fmt: skip
        parts.append("## Routes\n\n" + format_table(table))
    return "\n\n".join(parts) + "\n"


def main_tables(figures: Mapping[str, Any]) -> list[str]:
    """Accuracy, percent of unpruned, agreement and cost over all questions, and accuracy of each type."""
    means = [row for row in figures["rows"] if row["task"] == "mean"]
    everything = [row for row in means if row["type"] == "all"]
    n = everything[0]["n"]

    return [
        _accuracy(means, "all"),
        _percent(means, "all"),
        f"## Agreement, all, n = {n}\n\nMean over tasks of the share of answers that are, to the letter, those of the "
        "unpruned model, right or wrong.\n\n" + _by_ratio(everything, lambda row: f"{row['agreement']:.3f}"),
        f"## Cost, all, n = {n}\n\nMedian of pruned over unpruned prefill time of the same question, all passes "
        "included.\n\n" + _by_ratio(everything, lambda row: f"{row['cost']:.3f}"),
        *(_accuracy(means, kind) for kind in _single_types(means)),
    ]


def csv_text(rows: Sequence[_Row]) -> str:
    """Rows as CSV, with a numbered column for each entry of a list."""
    flat = []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, list):
                cells.update((f"{name}_{number}", entry) for number, entry in enumerate(value, start=1))
            else:
                cells[name] = value
        flat.append(cells)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for cells in flat for name in cells)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _by_ratio(rows: Sequence[_Row], cell: Callable[[_Row], str], method: str = "method") -> str:
    """A line for each method, a column for each ratio."""
    ratios = sorted({row["keep_ratio"] for row in rows}, reverse=True)
    found = {(row[method], row["keep_ratio"]): cell(row) for row in rows}
    return format_table([
        {"method": name} | {f"{ratio:g}": found.get((name, ratio), "") for ratio in ratios}
        for name in dict.fromkeys(row[method] for row in rows)
    ])  # fmt: skip


def _single_types(means: Sequence[_Row]) -> list[str]:
    return [kind for kind in dict.fromkeys(row["type"] for row in means) if kind != "all"]


def _accuracy(means: Sequence[_Row], kind: str) -> str:
    rows = [row for row in means if row["type"] == kind]
    table = _by_ratio(rows, lambda row: f"{row['accuracy']:.3f}")
    return f"## Accuracy, {kind}, n = {rows[0]['n']}\n\nMean over tasks.\n\n{table}"


def _percent(means: Sequence[_Row], kind: str) -> str:
    rows = [row for row in means if row["type"] == kind]
    table = _by_ratio(rows, lambda row: _with_interval(row, "percent_of_mean", "percent_of_mean_ci95"))
    return (
        f"## Percent, {kind}, n = {rows[0]['n']}\n\nAccuracy in percent of the unpruned one, with its 95 % interval."
        f"\n\n{table}"
    )


def _difference(test: _Row, of: str = "") -> str:
    low, high = test[f"{of}ci95"]
    return f"{test[f'{of}difference']:+.3f} [{low:+.3f}, {high:+.3f}] p {test[f'{of}p']:.4f}"


def _with_interval(row: _Row, value: str, interval: str) -> str:
    text = _number(row[value], 1)
    if row[interval] is not None and row["method"] != UNPRUNED:
        text += f", {row[interval][0]:.1f} to {row[interval][1]:.1f}"
    return text


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(figures: Mapping[str, Any], folder: Path, drawn: Sequence[str] | None = None) -> list[Path]:
    """Draws accuracy, agreement, percent of unpruned, cost, evidence recall and routes.

    Args:
        figures: What ``compare`` returns, of at least one question.
        folder: Where to write the PNGs.
        drawn: Methods to show; all if None.

    Returns:
        Their paths.
    """
    import matplotlib

    from headrouter_pl.cli.figures import drawing

    means = [row for row in figures["rows"] if row["task"] == "mean"]
    kinds = list(dict.fromkeys(row["type"] for row in means))
    shown = [name for name in dict.fromkeys(row["method"] for row in means) if name != UNPRUNED]
    shown = [name for name in shown if drawn is None or name in drawn]
    colours = {name: matplotlib.colormaps["tab20"](i % 20) for i, name in enumerate(shown)}
    written = []

    def panels(name: str, title: str, labels: tuple[str, str], x: str, y: str, band: str | None = None) -> None:
        path, size = folder / f"{name}.png", (4.2 * len(kinds) + 2.4, 4.6)
        with drawing(path, 1, len(kinds), figsize=size, sharey=True) as (figure, axes):
            for axis, kind in zip(axes[0], kinds, strict=True):
                (full,) = (row for row in means if row["type"] == kind and row["method"] == UNPRUNED)
                for method in shown:
                    line = [full, *(row for row in means if row["type"] == kind and row["method"] == method)]
                    line = sorted((row for row in line if row[y] is not None), key=lambda row: row[x])
                    across = [row[x] for row in line]
                    axis.plot(across, [row[y] for row in line], ".-", color=colours[method], label=method)
                    if line and band is not None:
                        low, high = zip(*(row[band] for row in line), strict=True)
                        axis.fill_between(across, low, high, color=colours[method], alpha=0.12, linewidth=0)
                if full[y] is not None:
                    axis.axhline(full[y], color="0.5", linewidth=0.8, linestyle=":")
                axis.set_title(f"{kind}, n = {full['n']}")
                axis.set_xlabel(labels[0])
            axes[0][0].set_ylabel(labels[1])
            figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
            figure.suptitle(f"{title} ({figures['split']} split)")
        written.append(path)

    kept, bands = "share of audio tokens kept", "bands: 95 % paired bootstrap"
    panels("accuracy", f"Accuracy; {bands} against unpruned", (kept, "accuracy, mean over tasks"), "applied_ratio",
           "accuracy", "accuracy_band")  # fmt: skip
    panels("agreement", "Answers as the unpruned model's", (kept, "share of answers, mean over tasks"), "applied_ratio",
           "agreement")  # fmt: skip
    panels("percent", f"Percent of unpruned; {bands}", (kept, "percent of unpruned"), "applied_ratio",
           "percent_of_mean", "percent_of_mean_ci95")  # fmt: skip
    panels("cost", "Percent of unpruned over measured cost", ("prefill time / unpruned", "percent of unpruned"), "cost",
           "percent_of_mean")  # fmt: skip
    panels("recall", "Evidence recall", (kept, "share of evidence tokens kept"), "applied_ratio", "evidence_recall")

    routes = [route for route in figures["routes"] if route["method"] in shown]
    if routes:
        names = list(dict.fromkeys(route["method"] for route in routes))
        types = list(dict.fromkeys(route["type"] for route in routes))
        path, size = folder / "routes.png", (3.2 * len(types) + 1, 1.7 * len(names) + 1)
        with drawing(path, len(names), len(types), figsize=size, sharex=True) as (figure, axes):
            for route in routes:
                axis = axes[names.index(route["method"])][types.index(route["type"])]
                axis.bar(np.arange(10) / 10 + 0.05, route["histogram"], width=0.1, edgecolor="white", color="C0")
            for axis, kind in zip(axes[0], types, strict=True):
                axis.set_title(f"{kind} questions", fontsize=9)
            for line, name in zip(axes, names, strict=True):
                line[0].set_ylabel(name, fontsize=8)
            figure.supxlabel("probability that the router gave to the question's own type")
        written.append(path)
    return written
