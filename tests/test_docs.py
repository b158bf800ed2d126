"""Tables in the documentation are those of the JSON files beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fill_tables
import pocket_variants
import profile_prefill
import pytest

from headrouter_pl.cli.benchmark_report import page as benchmark_page
from headrouter_pl.comparison import UNPRUNED
from headrouter_pl.data.audiomarathon import LAYOUTS
from headrouter_pl.data.pocket.scoring import wilson
from headrouter_pl.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"


def test_tables_are_of_their_figures() -> None:
    for path, text in fill_tables.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python scripts/fill_tables.py"


@pytest.mark.parametrize("table", fill_tables.TABLES, ids=lambda table: f"{table.figures}: {table.after}")
def test_a_table_is_filled_anew(table: fill_tables.Table) -> None:
    path = DOCS.parent / table.page
    text = path.read_text(encoding="utf-8")
    first = text.index("\n|--", text.index(table.after))
    last = text.index("\n\n", first)
    typed = text[:first] + re.sub(r"\d\.\d+|\d+ (?=\(\d)", "9.9", text[first:last]) + text[last:]
    assert typed != text
    assert fill_tables.filled(typed, table, fill_tables.read_figures(table.figures)) == text


def test_a_heading_tells_how_many_questions_its_table_is_of() -> None:
    rows = [{"task": "mean", "type": kind, "n": n} for kind, n in (("all", 7), ("voice", 3))]
    told = fill_tables.counted("## Accuracy, all, n = 5\n\nn = 5\n\n### Accuracy, voice, n = 2\n", {"rows": rows})
    assert told == "## Accuracy, all, n = 7\n\nn = 5\n\n### Accuracy, voice, n = 3\n"


def test_the_pocket_card_is_of_its_run() -> None:
    figures = json.loads((DOCS / "data" / "pocket_eval.json").read_text(encoding="utf-8"))
    page = (DOCS / "pocket.md").read_text(encoding="utf-8")
    assert says(page, figures["command"])
    assert says(page, f"{figures['questions']} questions")


def test_without_the_audio_no_task_is_answered_above_chance() -> None:
    figures = json.loads((DOCS / "data" / "pocket_eval.json").read_text(encoding="utf-8"))
    rows = [row for row in figures["rows"] if row["task"] != "all" and isinstance(row["length_s"], int)]
    assert len({row["task"] for row in rows}) >= 10
    for task in {row["task"] for row in rows}:
        of_task = [row for row in rows if row["task"] == task]
        count = sum(row["n"] for row in of_task)
        right = round(sum(row["accuracy_silenced"] * row["n"] for row in of_task))
        chance = sum(row["chance"] * row["n"] for row in of_task) / count
        assert wilson(right, count)[0] <= chance, task


def says(page: str, words: str) -> bool:
    """Whether the words stand in a page: a table as it is, other paragraphs however their lines are broken."""
    flowing = " ".join(page.split())
    parts = [part.strip("\n") for part in words.split("\n\n")]
    return all(part in page if part.startswith("|") else " ".join(part.split()) in flowing for part in parts)


def section(page: str, heading: str) -> str:
    """A page from a heading to the next one of the second level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text[text.index(heading) :].partition("\n## ")[0]


@pytest.mark.parametrize("name", ["long_positions", "pocket_eval_train", "pocket_training", "encoder_layers"])
def test_the_pocket_page_names_the_commands(name: str) -> None:
    figures = json.loads((DOCS / "data" / f"{name}.json").read_text(encoding="utf-8"))
    page = (DOCS / "pocket.md").read_text(encoding="utf-8")
    assert says(page, figures["command"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_evaluation_page_shows_the_registry(name: str) -> None:
    task = TASKS[f"audiomarathon-{name}"]
    row = f"| {name} | `{LAYOUTS[name].name}` | {task.type} | {type(task.metric()).__name__} | {task.max_new_tokens} |"
    assert f"\n{row} " in (DOCS / "evaluation.md").read_text(encoding="utf-8")


def test_the_evaluation_page_names_files_that_there_are() -> None:
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    for name in re.findall(r"configs/\w+\.yaml", page):
        assert (DOCS.parent / name).is_file(), name


def test_the_results_page_shows_the_comparison() -> None:
    figures = json.loads((DOCS / "data" / "pocket_compare.json").read_text(encoding="utf-8"))
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert says(text, figures["command"])
    assert says(text, f"{figures['questions']} of the {figures['questions_planned']} questions")


def test_the_results_page_shows_all_questions() -> None:
    figures = json.loads((DOCS / "data" / "pocket_compare_all.json").read_text(encoding="utf-8"))
    part = section("results.md", f"## All {figures['questions']} questions")
    assert figures["questions"] == figures["questions_planned"]
    assert says(part, figures["command"])
    (unpruned,) = (
        row for row in figures["rows"] if (row["method"], row["task"], row["type"]) == (UNPRUNED, "mean", "all")
    )
    assert says(part, f"The unpruned model is right {unpruned['accuracy']:.3f} of the time".replace(" 0.", " ."))


def test_the_results_page_shows_the_controls() -> None:
    figures = json.loads((DOCS / "data" / "pocket_controls.json").read_text(encoding="utf-8"))
    part = section("results.md", "## Controls at 10 %")
    assert says(part, figures["command"])
    assert says(part, f"The first {figures['questions']} of the same questions")
    for test in figures["tests"]:
        if test["a"] == "one pass, true type" and test["b"] == "one pass, swapped":
            assert says(part, f"{test['difference']:+.3f}".replace("0.", ".", 1))


def test_the_results_page_shows_the_probe_without_attention() -> None:
    figures = json.loads((DOCS / "data" / "pocket_probe.json").read_text(encoding="utf-8"))
    part = section("results.md", "### Without attention")
    assert says(part, figures["command"])
    assert says(part, f"{figures['questions']} questions")


def test_the_results_page_shows_what_was_tried() -> None:
    figures = json.loads((DOCS / "data" / "pocket_variants.json").read_text(encoding="utf-8"))
    part = section("results.md", "## What was tried")
    assert says(part, figures["command"])
    assert says(part, f"{figures['questions']} questions")
    names = [name for variants in pocket_variants.VARIANTS.values() for name in variants]
    shown = [row["variant"] for row in figures["rows"]]
    assert shown == [UNPRUNED, *names]


def test_the_results_page_shows_the_question_before_the_audio() -> None:
    figures = json.loads((DOCS / "data" / "question_first.json").read_text(encoding="utf-8"))
    part = section("results.md", "### The question before the audio")
    assert says(part, figures["command"])
    assert says(part, f"{figures['questions']} validation questions")
    assert says(part, f"weights {figures['weights']}, {figures['dtype']}, {figures['machine']}")


def test_the_results_page_shows_long_audio() -> None:
    figures = json.loads((DOCS / "data" / "pocket_compare_long.json").read_text(encoding="utf-8"))
    part = section("results.md", "## Long audio")
    assert says(part, figures["command"])
    assert says(part, f"{figures['questions']} questions about 120 and 300 s")
    assert figures["questions"] == figures["questions_planned"]  # "All", it says


def test_the_readmes_table_is_of_the_comparison() -> None:
    figures = json.loads((DOCS / "data" / "pocket_compare.json").read_text(encoding="utf-8"))
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert says(readme, f"n = {figures['questions']} questions")


def test_the_fine_tuning_table_is_that_of_its_run() -> None:
    figures = json.loads((DOCS / "data" / "lora_pruning.json").read_text(encoding="utf-8"))
    text = (DOCS / "finetuning.md").read_text(encoding="utf-8")
    assert says(text, figures["command"])
    assert says(text, f"n = {figures['questions']} questions")


def test_the_performance_page_shows_the_peers() -> None:
    figures = json.loads((DOCS / "data" / "peers.json").read_text(encoding="utf-8"))
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert says(text, figures["command"])
    assert says(text, figures["peaks"]["command"])
    assert says(text, figures["accuracy"]["command"])
    assert says(text, f"n = {figures['accuracy']['n']} questions")


def test_the_performance_page_shows_early_eviction() -> None:
    figures = json.loads((DOCS / "data" / "evict_early.json").read_text(encoding="utf-8"))
    part = section("performance.md", "## Evicting early, in accuracy")
    assert says(part, figures["command"])
    assert says(part, f"n = {figures['questions']} questions")


def test_the_performance_page_tells_what_was_measured_apart() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    deep, hooks = (json.loads((DOCS / "data" / f"benchmark_pocket_{name}.json").read_text(encoding="utf-8"))
                   for name in ("deep_300s", "decode_60s"))  # fmt: skip

    def told(rows: list[dict[str, Any]], figure: str) -> str:
        *first, last = (f"{row[figure]:.3f}".removeprefix("0") for row in rows)
        return f"{', '.join(first)} and {last}"

    assert says(text, deep["command"])
    assert says(text, hooks["command"])
    assert says(
        text, f"its prefill takes {told(deep['rows'], 'prefill_ratio')} of the unpruned one at 30 and 10 % kept"
    )
    assert says(text, told(deep["rows"], "ideal_ratio"))
    assert says(text, f"with the hooks takes {told(hooks['rows'], 'decode_hooks_ratio')} of the time")
    batches = json.loads((DOCS / "data" / "benchmark_pocket_batch_30s.json").read_text(encoding="utf-8"))
    assert says(text, batches["command"])
    one, four = ([row for row in batches["rows"] if (row["batch"], row["layer"]) == (size, 3)] for size in (1, 4))
    assert says(text, f"prefill takes {told(four, 'prefill_ratio')} of the unpruned one at K = 3")
    assert says(text, f"(one recording: {told(one, 'prefill_ratio')}; ideal {told(one, 'ideal_ratio')})")
    assert says(text, f"decoding {told(four, 'decode_ratio')} ({told(one, 'decode_ratio')})")
    assert says(text, f"keeps everything takes {hooks['rows'][0]['prefill_ratio']:.3f}".replace(" 0.", " ."))
    long = json.loads((DOCS / "data" / "benchmark_pocket_600s.json").read_text(encoding="utf-8"))
    assert says(text, long["command"])
    two, three = (row for row in long["rows"] if row["length_s"] == 600)
    prefills = [f"{row[name]:.3f}".lstrip("0") for name in ("prefill_ratio", "ideal_ratio") for row in (two, three)]
    told_so = (
        "prefill takes {} (K = 2, with its scout pass) and {} (K = 3) of the unpruned one, where FLOPs say {} and {}."
    )
    assert says(text, told_so.format(*prefills))
    assert says(text, f"in a line (r² {long['scaling'][1]['r2']:.3f})".replace(" 0.", " ."))
    assert says(text, f"Routing a new prompt takes {1000 * hooks['new_prompt_routing_s']:.2f} ms")


def test_the_performance_page_shows_the_profile() -> None:
    figures = json.loads((DOCS / "data" / "profile_pocket_cpu.json").read_text(encoding="utf-8"))
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert says(text, profile_prefill.table(figures["rows"]))
    assert says(text, figures["command"])
    shares = {row["operation"].rpartition(":")[2]: row["share"] for row in figures["rows"]}
    most = shares["mm"] + shares["_scaled_dot_product_flash_attention_for_cpu"]
    assert says(text, f"there are take {100 * most:.0f} %")
    assert says(text, f"with {100 * shares['gather']:.1f} % around")


def test_the_performance_page_shows_the_benchmark() -> None:
    figures = json.loads((DOCS / "data" / "benchmark_pocket_cpu.json").read_text(encoding="utf-8"))
    tables = benchmark_page(figures).rstrip().partition("\n")[2]
    assert says((DOCS / "performance.md").read_text(encoding="utf-8"), tables)
    assert (DOCS / "data" / "benchmark_pocket_cpu.md").read_text(encoding="utf-8") == benchmark_page(figures)
    rows = {(row["length_s"], row["layer"], row["keep_ratio"]): row for row in figures["rows"]}
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    scout, own = rows[300, 2, 0.3], rows[300, 3, 0.3]
    for name, digits in (("prefill_ratio", "3f"), ("ideal_ratio", "3f"), ("overhead_share", "2%"),
                         ("first_token_ratio", "3f"), ("peak_memory_ratio", "3f")):  # fmt: skip
        one, two = (f"{row[name]:.{digits}}".replace("%", " %") for row in (scout, own))
        assert says(readme, f"| {one} | {two} |"), name
    held = [f"{row['kv_bytes'] / 2**20:.1f} MiB" for row in (scout, own, rows[300, 2, 1.0])]
    assert says(readme, f"KV cache, of {held[2]} | {held[0]} | {held[1]} |")
