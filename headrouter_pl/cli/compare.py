"""``headrouter-pl compare``: pruning methods on the same questions of the Pocket benchmark, by accuracy and cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from headrouter_pl.cli.method_runner import MethodRunner, check_methods, read_methods, read_ratios
from headrouter_pl.cli.pocket import FORMAT, MAX_NEW_TOKENS, choose_items, items_digest, load_model, weights_digest
from headrouter_pl.digest import digest
from headrouter_pl.errors import unknown_name

KEEP_RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1)


def compare(
    methods: list[dict[str, Any]],
    keep_ratios: list[float] = list(KEEP_RATIOS),  # noqa: B006 (never changed; jsonargparse wants a list)
    tested: list[str] = [],  # noqa: B006
    drawn: list[str] | None = None,
    weights: str = "shipped",
    checkpoint: str | None = None,
    split: str = "validation",
    lengths: list[int] | None = None,
    tasks: list[str] | None = None,
    max_scenes: int | None = None,
    max_minutes: float | None = None,
    dtype: str = "bfloat16",
    details: str = "outputs/compare/answers.jsonl",
    folder: str = "outputs/compare",
    output: str | None = None,
) -> dict[str, Any]:
    """Compares pruning methods on the Pocket benchmark: accuracy, evidence kept and measured prefill time.

    A recording is encoded once. Each question about it is asked unpruned, then with every method at every ratio, before
    the next one: wherever the run stops, all methods have answered the same questions. Questions come in an order that
    mixes lengths and tasks. Every answer is kept in ``details`` as soon as it is there, and a run that was stopped goes
    on where it was. So does one that names further methods or ratios: only what is new is asked.

    Args:
        methods: The methods, each with ``name`` and ``scorer``, and perhaps ``profile``, ``router`` or ``types``,
            ``layer``, ``evict_early``, ``seeds`` and ``init_args``; see :class:`headrouter_pl.comparison.Method`. The
            profile "self" is measured on the first eight questions, as HeadRouterCallback measures it on the first
            batches.
        keep_ratios: Shares of the audio tokens to keep; the unpruned model (1.0) is always asked.
        tested: Methods to test against all others, by paired bootstrap.
        drawn: Methods that the figures show; all by default.
        weights: "shipped", "untrained", or a folder of exported weights.
        checkpoint: A Lightning checkpoint of the training, instead of weights.
        split: "validation" or "test".
        lengths: Seconds of the scenes to ask about; all by default.
        tasks: Tasks to ask about, such as "transcription"; all by default.
        max_scenes: Scenes of each length, at most: the first that the whole comparison would ask about.
        max_minutes: Ask no new question after so long, and report what is there; 0 to report an earlier run.
        dtype: Of the weights, as torch names it.
        details: Where to keep the answers, as JSON lines.
        folder: Where to write the tables (Markdown, CSV) and figures.
        output: Where to write the figures as JSON, if anywhere, e.g. docs/data/pocket_compare.json.

    Returns:
        The figures.
    """
    import torch

    from headrouter_pl.cli import COMMAND_LINE
    from headrouter_pl.cli.compare_report import PAGE, write_report
    from headrouter_pl.cli.tables import dump_figures, machine
    from headrouter_pl.comparison import summarize
    from headrouter_pl.data.pocket.benchmark import PocketBenchmark
    from headrouter_pl.data.pocket.questions import QUESTION_TASKS
    from headrouter_pl.models.checkpoints import get_dtype
    from headrouter_pl.results import ResultsLog, check_output, write_text
    from headrouter_pl.routers.prompt import shipped_prompts

    chosen = read_methods(methods)
    ratios = read_ratios(keep_ratios)
    for name in (*tested, *(drawn or ())):
        if name not in [method.name for method in chosen]:
            raise unknown_name("method", name, [method.name for method in chosen])
    check_methods(chosen)
    for name in tasks or ():
        if name not in QUESTION_TASKS:
            raise unknown_name("task", name, QUESTION_TASKS)
    weights_dtype = get_dtype(dtype)
    for path in (details, Path(folder) / PAGE, output):
        if path is not None:
            check_output(path)
    benchmark = PocketBenchmark.open(split)
    items = choose_items(benchmark.items, lengths, max_scenes, tasks)
    model, processor = load_model(weights, checkpoint, weights_dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    runner = MethodRunner(model, processor, chosen, ratios, sorted({item.type for item in items}))
    runner.calibrate(items, benchmark.folder)
    configuration = {
        "format": FORMAT,
        "prompts": digest(shipped_prompts()),  # what routers by the prompt are fitted on
        "weights": weights_digest(model),
        "dtype": dtype,
        "max_new_tokens": MAX_NEW_TOKENS,
        "methods": runner.describe(),
        "items": items_digest(items),
    }
    log = ResultsLog(details, configuration, grows=("methods",))
    runner.ask(items, benchmark.folder, log, None if max_minutes is None else 60 * max_minutes)
    summary = summarize(list(log.rows.values()), chosen, ratios, tested=tested)
    figures = {
        "split": split,
        "command": COMMAND_LINE.get() or "headrouter_pl.cli.compare.compare",
        # Of all who answered: a run may go on elsewhere, or be reported there.
        "machine": " and ".join(sorted({row["machine"] for row in log.rows.values()})) or machine(),
        "weights": configuration["weights"],
        "dtype": dtype,
        "questions_planned": len(items),
        "methods": [dataclasses.asdict(method) for method in chosen],
        **summary,
    }
    if summary["questions"]:
        write_report(figures, Path(folder), drawn)
    else:
        print("No question has been answered by all methods yet.")
    if output is not None and summary["questions"]:
        write_text(output, dump_figures(figures))
        print(f"Written: {output}")
    return figures
