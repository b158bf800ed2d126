#!/usr/bin/env python
"""Fills tables of README.md and docs/*.md, those of TABLES below, from the figures in docs/data.

    python scripts/fill_tables.py

Rows and columns are those that stand there, or come with the figures; what a page says about them is left alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrouter_pl.cli.compare_report import main_tables, page
from headrouter_pl.cli.evaluate import by_length, card
from headrouter_pl.cli.tables import format_table
from headrouter_pl.comparison import UNPRUNED, Method
from headrouter_pl.results import write_text
from headrouter_pl.tasks.scoring import table as scores_table

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import compare_peers  # noqa: E402

Figures = Mapping[str, Any]
Cells = list[list[str]]


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        page: The page, from the root of the repository.
        figures: Name of the file in docs/data.
        after: What stands before the table, once in the page; the first table behind it is meant.
        fill: Gives the new table from the figures and the old one's cells, titles first.
    """

    page: str
    figures: str
    after: str
    fill: Callable[[Figures, Cells], str]


def means(figures: Figures, kind: str = "all") -> dict[tuple[str, float], dict[str, Any]]:
    """A comparison's means over tasks, by method and ratio."""
    rows = (row for row in figures["rows"] if row["task"] == "mean" and row["type"] == kind)
    return {(row["method"], row["keep_ratio"]): row for row in rows}


def names(figures: Figures) -> list[str]:
    """The methods, unpruned first."""
    return [UNPRUNED, *(method["name"] for method in figures["methods"])]


def join(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return format_table([dict(zip(titles, row, strict=True)) for row in rows])


def settings(figures: Figures, old: Cells) -> str:
    """Agreement and cost of each setting; its words stay."""
    found = means(figures)
    titles, *lines = old
    ratios = [int(title.split()[0]) / 100 for title in titles[3:]]
    rows = []
    for *words, name in (line[:3] for line in lines):
        told = (found[name, ratio] for ratio in ratios)
        rows.append([*words, name, *(f"{100 * row['agreement']:.0f} % ({row['cost']:.2f})" for row in told)])
    return join(titles, rows)


def readme(figures: Figures, old: Cells) -> str:
    """Accuracy, agreement and cost of each method; its setting stays."""
    found = means(figures)
    titles, *lines = old
    told = []
    for name, setting, *_ in lines:
        full = name == UNPRUNED
        rows = [found[name, 1.0 if full else ratio] for ratio in (0.7, 0.5, 0.3, 0.1)]
        cells = [f"{row['accuracy']:.3f}" + ("" if full else f" ({100 * row['agreement']:.0f} %)") for row in rows]
        costs = ["1" if full else f"{row['cost']:.2f}" for row in (rows[0], rows[-1])]
        told.append([name, setting, *cells, *costs])
    return join(titles, told)


def significance(figures: Figures, old: Cells) -> str:
    """Differences of accuracy and their p; which methods, and at which ratio, the titles say."""
    (title, *tested), *_ = old
    ratio = int(title.split()[-2]) / 100
    found = {(test["a"], test["b"]): test for test in figures["tests"]
             if test["type"] == "all" and test["keep_ratio"] == ratio}  # fmt: skip
    rows = []
    for against in (name for name in names(figures) if name not in tested):
        tests = [found[name, against] for name in tested]
        rows.append([against, *(f"{test['difference']:+.3f} [{test['ci95'][0]:+.3f}, {test['ci95'][1]:+.3f}], "
                                f"p {test['p']:.4f}" for test in tests)])  # fmt: skip
    return join([title, *tested], rows)


def aims(figures: Figures, old: Cells) -> str:
    """Percent of the unpruned accuracy, and task by task; the aims stay."""
    found = means(figures)
    titles, *lines = old
    ratios = [int(title.split()[0]) / 100 for title in titles[1:]]
    rows = []
    for name, *cells in lines:
        if name in names(figures):
            told = (found[name, ratio] for ratio in ratios)
            cells = [f"{row['percent_of_mean']:.0f} ({row['percent_of_unpruned']:.0f})" for row in told]
        rows.append([name, *cells])
    return join(titles, rows)


def controls(figures: Figures, old: Cells) -> str:
    """Accuracy by type, and what is kept, at a tenth of the tokens, of the methods that stand there."""
    kinds = ("semantic", "voice", "sound", "all")
    by_kind = {kind: means(figures, kind) for kind in kinds}
    rows = []
    for name, *_ in old[1:]:
        at = (name, 1.0 if name == UNPRUNED else 0.1)
        whole = by_kind["all"][at]
        accuracies = (f"{by_kind[kind][at]['accuracy']:.3f}" for kind in kinds)
        rows.append([name, *accuracies, f"{whole['percent_of_mean']:.1f}", f"{whole['percent_of_unpruned']:.1f}",
                     f"{whole['agreement']:.3f}", f"{whole['evidence_recall']:.3f}"])  # fmt: skip
    return join(old[0], rows)


def routers(figures: Figures, old: Cells) -> str:
    """Accuracy and agreement of each head weights with each router, at a tenth of the tokens."""
    found = means(figures)
    ways = {"joint": "joint", "prompt": "prompt", "audio": "selectivity", "true type": "true", "one for all": "uniform"}
    told = {}
    for given in figures["methods"]:
        row = found[given["name"], 0.1]
        cell = f"{row['accuracy']:.3f} ({100 * row['agreement']:.0f} %)"
        told[given["name"].partition(",")[0], Method(**given).routing] = cell
    titles, *lines = old
    return join(titles, [
        [name, *(told.get((name, ways[title]), "") for title in titles[1:])] for name, *_ in lines
    ])  # fmt: skip


def by_ratio(figures: Figures, old: Cells) -> str:
    """Accuracy and agreement at each ratio in the titles."""
    found = means(figures)
    titles = old[0]
    rows = []
    for name in names(figures)[1:]:
        told = (found[name, float(title)] for title in titles[1:])
        rows.append([name, *(f"{row['accuracy']:.3f} ({100 * row['agreement']:.0f} %)" for row in told)])
    return join(titles, rows)


def at_two_ratios(figures: Figures, old: Cells) -> str:
    """Accuracy, percent of the unpruned one with its interval, and agreement at 30 and 10 %."""
    found = means(figures)
    rows = []
    for name in names(figures)[1:]:
        cells = []
        for row in (found[name, ratio] for ratio in (0.3, 0.1)):
            low, high = row["percent_of_mean_ci95"]
            cells += [f"{row['accuracy']:.3f}", f"{row['percent_of_mean']:.1f}, {low:.1f} to {high:.1f}",
                      f"{row['agreement']:.3f}"]  # fmt: skip
        rows.append([name, *cells])
    return join(old[0], rows)


def long_audio(figures: Figures, old: Cells) -> str:
    """Accuracy, agreement and cost at two ratios, and agreement by length."""
    found = means(figures)
    rows = []
    for name in names(figures):
        first, last = (found[name, 1.0 if name == UNPRUNED else ratio] for ratio in (0.3, 0.1))
        lengths = [
            row["agreement"] for row in figures["lengths"]
            if (row["method"], row["type"], row["keep_ratio"]) == (name, "all", last["keep_ratio"])
            and row["length_s"] in (120, 300)
        ]  # fmt: skip
        accuracies = []
        for row in (first, last):
            low, high = row["percent_of_mean_ci95"]
            interval = "" if name == UNPRUNED else f", {low:.1f} to {high:.1f}"
            accuracies.append(f"{row['accuracy']:.3f} ({row['percent_of_mean']:.1f}{interval})")
        shares = (first["agreement"], last["agreement"], *lengths, first["cost"], last["cost"], last["evidence_recall"])
        rows.append([name, *accuracies, *(f"{share:.3f}" for share in shares)])
    return join(old[0], rows)


def early_eviction(figures: Figures, old: Cells) -> str:
    """Accuracy at each ratio in the titles."""
    found = means(figures)
    titles = old[0]
    ratios = [float(title) for title in titles[1:]]
    return join(titles, [
        [name, *(f"{found[name, 1.0 if name == UNPRUNED else ratio]['accuracy']:.3f}" for ratio in ratios)]
        for name in names(figures)
    ])  # fmt: skip


def fine_tuning(figures: Figures, old: Cells) -> str:
    """Time, losses and right answers of each training."""
    rows = []
    for row in figures["rows"]:
        whole = row["trained_at"] == 1
        time = f"1 ({row['step_seconds']:.1f} s)" if whole else f"{row['step_time_ratio']:.3f}"
        rows.append([
            f"{row['trained_at']:.1f}", time,
            *(f"{row[name]:.3f}" for name in ("train_loss", "loss_unpruned", "right_unpruned")),
            f"{row['asked_pruned_at']:.1f}", *(f"{row[name]:.3f}" for name in ("loss_pruned", "right_pruned")),
        ])  # fmt: skip
    return join(old[0], rows)


def peers(figures: Figures, old: Cells) -> str:
    """As the comparison prints it."""
    return compare_peers.table(figures["rows"])


def model_card(figures: Figures, old: Cells) -> str:
    """As the evaluation prints it."""
    return card(figures)


def lengths(figures: Figures, old: Cells) -> str:
    """As the evaluation prints it."""
    return by_length(figures)


def heard_in_training(figures: Figures, old: Cells) -> str:
    """Right answers about recordings that the training has heard, beside those of the test split."""
    test = {row["task"]: row for row in read_figures("pocket_eval")["rows"] if row["length_s"] == "8-15"}
    rows = [row for row in figures["rows"] if row["length_s"] == "8-15" and row["task"] != "all"]
    return join(old[0], [
        [row["task"], *(f"{found['accuracy']:.2f}, n = {found['n']}" for found in (row, test[row["task"]]))]
        for row in sorted(rows, key=lambda row: -row["accuracy"])
    ])  # fmt: skip


def encoder_layers(figures: Figures, old: Cells) -> str:
    """What a classifier tells of new recordings from each layer of the encoder."""
    found = {(row["attribute"], row["layer"]): row for row in figures["rows"]}
    layers = sorted({layer for _, layer in found})
    return join(["attribute", "n", *(f"layer {layer}" for layer in layers), "training, last layer"], [
        [name, str(found[name, layers[0]]["n"]), *(f"{found[name, layer]['accuracy']:.2f}" for layer in layers),
         f"{found[name, layers[-1]]['trained']:.2f}"]
        for name in dict.fromkeys(name for name, _ in found)
    ])  # fmt: skip


def main_table(number: int) -> Callable[[Figures, Cells], str]:
    """One of a comparison's main tables, without its title."""
    return lambda figures, old: main_tables(figures)[number].rpartition("\n\n")[2]


def scores(figures: Figures, old: Cells) -> str:
    """As EvaluationReport prints it."""
    return format_table(scores_table(figures))


def all_rows(figures: Figures, old: Cells) -> str:
    """The rows as they are."""
    return format_table(figures["rows"])


RESULTS = "docs/results.md"
MAIN_TABLES = [  # in the order of main_tables
    *("Accuracy, all", "Percent, all", "Agreement, all", "Cost, all"),
    *("Accuracy, semantic", "Accuracy, voice", "Accuracy, sound"),
]
TABLES = [
    Table("README.md", "pocket_compare", "## Measured", readme),
    Table(RESULTS, "pocket_compare", "## Which setting to take", settings),
    *(
        Table(RESULTS, "pocket_compare", f"# {title}, n = ", main_table(number))
        for number, title in enumerate(MAIN_TABLES)
    ),
    *(Table(RESULTS, "pocket_compare", f"| against, at {share} % ", significance) for share in (70, 50, 30, 10)),
    Table(RESULTS, "pocket_compare_all", "## All 656 questions", at_two_ratios),
    Table(RESULTS, "pocket_compare", "## Against the aims", aims),
    Table(RESULTS, "pocket_controls", "## Controls at 10 %", controls),
    Table(RESULTS, "pocket_controls", "### Weights and routers", routers),
    Table(RESULTS, "pocket_probe", "### Without attention", by_ratio),
    Table(RESULTS, "pocket_variants", "## What was tried", all_rows),
    Table(RESULTS, "question_first", "### The question before the audio", all_rows),
    Table(RESULTS, "pocket_compare_long", "## Long audio", long_audio),
    Table("docs/pocket.md", "pocket_eval", "## Results", model_card),
    Table("docs/pocket.md", "pocket_eval", "By type and length", lengths),
    Table("docs/pocket.md", "pocket_eval_train", "--output docs/data/pocket_eval_train.json", heard_in_training),
    Table("docs/pocket.md", "encoder_layers", "--output docs/data/encoder_layers.json", encoder_layers),
    Table("docs/pocket.md", "long_positions", "--output docs/data/long_positions.json`", all_rows),
    Table("docs/evaluation.md", "audiomarathon_pocket", "### End to end on long audio", scores),
    Table("docs/finetuning.md", "lora_pruning", "python benchmarks/lora_pruning.py", fine_tuning),
    Table("docs/performance.md", "peers", "## Beside the peers' ways", peers),
    Table("docs/performance.md", "evict_early", "## Evicting early, in accuracy", early_eviction),
]


def read_figures(name: str) -> Any:
    """Figures in docs/data."""
    return json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))


def filled(text: str, table: Table, figures: Figures) -> str:
    """A page with one of its tables anew.

    Raises:
        SystemExit: If the page does not say once what stands before the table, or has none there.
    """
    if text.count(table.after) != 1:
        raise SystemExit(f"{table.page} says {text.count(table.after)} times, not once: {table.after}")
    start = text.index(table.after)
    found = re.compile(r"^\|.*\n(\|.*\n)+", re.MULTILINE).search(text, text.rindex("\n", 0, start) + 1)
    if found is None:
        raise SystemExit(f"{table.page} has no table after: {table.after}")
    titles, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines())
    return f"{text[: found.start()]}{table.fill(figures, [titles, *lines])}\n{text[found.end() :]}"


def counted(text: str, figures: Figures) -> str:
    """A page whose headings say how many questions their tables are of."""
    numbers = {row["type"]: row["n"] for row in figures["rows"] if row["task"] == "mean"}
    return re.sub(
        r"^(#+ \w+, (\w+), n = )\d+$", lambda title: f"{title[1]}{numbers[title[2]]}", text, flags=re.MULTILINE
    )


def pages() -> dict[Path, str]:
    """The pages with their tables filled, by their paths."""
    texts = {ROOT / table.page: (ROOT / table.page).read_text(encoding="utf-8") for table in TABLES}
    for table in TABLES:
        path = ROOT / table.page
        texts[path] = filled(texts[path], table, read_figures(table.figures))
    comparison = read_figures("pocket_compare")
    texts[ROOT / RESULTS] = counted(texts[ROOT / RESULTS], comparison)
    texts[ROOT / "docs" / "data" / "pocket_compare.md"] = page(comparison)
    return texts


def main() -> None:
    """Writes the pages that change, and says which."""
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"Written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
