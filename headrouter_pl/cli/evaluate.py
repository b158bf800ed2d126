"""``headrouter-pl evaluate``: the pocket LALM's answers to the Pocket benchmark, scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrouter_pl.cli.pocket import FORMAT, MAX_NEW_TOKENS, choose_items, items_digest, load_model, weights_digest
from headrouter_pl.results import ResultsLog, check_output, write_text

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem
    from headrouter_pl.data.pocket.scoring import Answered

_CONFUSIONS = 12  # pairs to print of a task


def evaluate(
    weights: str = "shipped",
    checkpoint: str | None = None,
    split: str = "test",
    lengths: list[int] | None = None,
    max_scenes: int | None = None,
    silenced: bool = True,
    dtype: str = "bfloat16",
    output: str | None = None,
    details: str | None = None,
) -> dict[str, Any]:
    """Asks the pocket model the questions of the Pocket benchmark and scores its answers.

    An audio is read once for all its questions. With ``details``, every answer is kept as soon as it is there, and a
    run that was stopped goes on where it was.

    Args:
        weights: "shipped", "untrained", or a folder of exported weights.
        checkpoint: A Lightning checkpoint of the training, instead of weights.
        split: "test", "validation" or "train".
        lengths: Seconds of the scenes to ask about; all by default.
        max_scenes: Scenes of each length, at most.
        silenced: Whether to ask also with the audio silenced, of the same length: what text alone gives.
        dtype: Of the weights, as torch names it.
        output: Where to write the figures as JSON, if anywhere, e.g. docs/data/pocket_eval.json.
        details: Where to keep the answers as JSON lines, if anywhere.

    Returns:
        The figures.
    """
    import torch

    from headrouter_pl.cli import COMMAND_LINE
    from headrouter_pl.cli.tables import dump_figures, machine
    from headrouter_pl.data.pocket.benchmark import PocketBenchmark
    from headrouter_pl.data.pocket.scoring import confusions, summarize
    from headrouter_pl.models.answering import AudioReader
    from headrouter_pl.models.checkpoints import get_dtype

    weights_dtype = get_dtype(dtype)
    if output is not None:
        check_output(output)
    benchmark = PocketBenchmark.open(split)
    # Length by length: silence is read anew when the length changes.
    items = sorted(choose_items(benchmark.items, lengths, max_scenes), key=lambda item: item.seconds)
    model, processor = load_model(weights, checkpoint, weights_dtype)
    configuration = {
        "format": FORMAT,
        "weights": weights_digest(model),
        "dtype": dtype,
        "silenced": silenced,
        "max_new_tokens": MAX_NEW_TOKENS,
        "items": items_digest(items),
    }
    kept = ResultsLog(details, configuration)
    reader = AudioReader(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor, MAX_NEW_TOKENS)
    results = list(_ask(reader, benchmark.folder, items, silenced, kept))
    rows = summarize(results)
    weak = sorted({row["task"] for row in rows if row.get("reached") is False})
    figures = {
        "split": split,
        "command": COMMAND_LINE.get() or "headrouter_pl.cli.evaluate.evaluate",
        "machine": machine(),
        "weights": configuration["weights"],
        "dtype": dtype,
        "questions": len(items),
        "rows": rows,
        "confusions": {
            task: [{"right": right, "said": said, "n": count} for right, said, count in confusions(results, task)]
            for task in weak
        },
    }
    _print(figures)
    if output is not None:
        write_text(output, dump_figures(figures))
        print(f"Written: {output}")
    return figures


def _ask(
    reader: Any, folder: Path, items: Sequence[PocketItem], silenced: bool, kept: ResultsLog
) -> Iterator[Answered]:
    """Results in the order of the items; silence depends on nothing but its length, and is read once of each."""
    import numpy as np
    from tqdm.auto import tqdm

    from headrouter_pl.data.audio import read_audio
    from headrouter_pl.data.pocket.scoring import Answered, score_answer

    rate = reader.processor.feature_extractor.sampling_rate
    silence: tuple[int, Any] = (0, None)
    blind: dict[tuple[int, str], str] = {}
    scenes = [list(group) for _, group in groupby(items, key=lambda item: item.audio)]
    total = sum(scene[0].seconds for scene in scenes)
    done = sum(scene[0].seconds for scene in scenes if all(item.key in kept.rows for item in scene))
    with tqdm(total=round(total), initial=round(done), desc="answering", unit=" s of audio") as bar:
        for scene in scenes:
            open_ = [item for item in scene if item.key not in kept.rows]
            if open_:
                audio = read_audio(folder / open_[0].audio, rate)
                read = reader.read(audio)
            for item in open_:
                text = reader.answer(read, item.prompt)
                row = {"key": item.key, "prompt": item.prompt, "answer": item.answer, "text": text,
                       "right": score_answer(item, text).right}  # fmt: skip
                if silenced:
                    asked = (len(audio), item.prompt)
                    if asked not in blind:
                        if silence[0] != len(audio):
                            silence = (len(audio), reader.read(np.zeros_like(audio)))
                        blind[asked] = reader.answer(silence[1], item.prompt)
                    row["silenced"] = blind[asked]
                kept.add([row])
            if open_:
                bar.update(round(scene[0].seconds))
            for item in scene:
                yield Answered(item, kept.rows[item.key]["text"], kept.rows[item.key].get("silenced"))


def card(figures: Mapping[str, Any]) -> str:
    """The table of the model card: one row a task, short, middle and long audio side by side.

    Args:
        figures: What ``evaluate`` writes.
    """
    from headrouter_pl.cli.tables import format_table

    by_task: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in figures["rows"]:
        if row["task"] != "all":
            by_task.setdefault(row["task"], {})[str(row["length_s"])] = row
    labels = {label for found in by_task.values() for label in found}
    # Of short, middle and long audio, the label that takes in the most lengths.
    groups = []
    for shortest, longest in ((0, 15), (15, 30), (30, math.inf)):
        within = [label for label in labels if shortest < int(label.split("-")[0]) <= longest]
        if within:
            groups.append(max(within, key=lambda label: int(label.split("-")[-1]) - int(label.split("-")[0])))
    table = []
    for task, found in by_task.items():
        cells = {"task": task, "type": next(iter(found.values()))["type"]}
        for name in groups:
            row = found.get(name)
            text = "" if row is None else _share(row)
            if row is not None and "target" in row:
                text += f" (target {row['target']:.2f})"
            if row is not None and "wer" in row:
                text += f"; WER {row['wer']:.2f} {_interval(row['wer_ci95'], 2)}"
            cells[f"{name} s"] = text
        rows = [found[name] for name in groups if name in found]
        count = sum(row["n"] for row in rows)
        for title, key in (("chance", "chance"), ("silenced", "accuracy_silenced")):
            known = bool(rows) and all(key in row for row in rows)
            cells[title] = f"{sum(row[key] * row['n'] for row in rows) / count:.2f}" if known else ""
        table.append(cells)
    return format_table(table)


def by_length(figures: Mapping[str, Any]) -> str:
    """The table of each type at each length of audio.

    Args:
        figures: What ``evaluate`` writes.
    """
    from headrouter_pl.cli.tables import format_table

    rows = [row for row in figures["rows"] if row["task"] == "all" and isinstance(row["length_s"], int)]
    found = {(row["type"], row["length_s"]): _share(row) for row in rows}
    lengths = sorted({length for _, length in found})
    return format_table([
        {"type": kind} | {f"{length} s": found.get((kind, length), "") for length in lengths}
        for kind in dict.fromkeys(kind for kind, _ in found)
    ])  # fmt: skip


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.2f} {_interval(row['ci95'], 2)}, n = {row['n']}"


def _print(figures: Mapping[str, Any]) -> None:
    from headrouter_pl.cli.tables import format_table

    rows = figures["rows"]
    print(f"\n{card(figures)}\n\n{by_length(figures)}")
    print(f"\nPocket benchmark, {figures['split']} split: {figures['questions']} questions, {figures['dtype']}, "
          f"{figures['machine']}. 95 % intervals in brackets.")  # fmt: skip
    for title, chosen in (
        ("Tasks", [row for row in rows if row["task"] != "all"]),
        ("Types", [row for row in rows if row["task"] == "all"]),
    ):
        print(f"\n{title}\n{format_table([_cells(row) for row in chosen])}")
    spoken = [row for row in rows if "wer" in row and row["task"] != "all"]
    if spoken:
        print("\nWord error rate of transcription")
        print(format_table([
            {"seconds": row["length_s"], "n": row["n"], "WER": f"{row['wer']:.3f} {_interval(row['wer_ci95'])}",
             "WER, silenced": f"{row['wer_silenced']:.3f}" if "wer_silenced" in row else ""}
            for row in spoken
        ]))  # fmt: skip
    for task, pairs in figures["confusions"].items():
        print(f"\n{task}, below its target: right answer, what was said, times")
        print(format_table(pairs[:_CONFUSIONS]))
        if len(pairs) > _CONFUSIONS:
            print(f"... and {len(pairs) - _CONFUSIONS} more pairs")


def _cells(row: Mapping[str, Any]) -> dict[str, object]:
    silenced = ""
    if "accuracy_silenced" in row:
        above = " (above chance)" if row["ci95_silenced"][0] > row["chance"] else ""
        silenced = f"{row['accuracy_silenced']:.3f}{above}"
    return {
        "type": row["type"],
        "task": row["task"],
        "seconds": row["length_s"],
        "n": row["n"],
        "accuracy": f"{row['accuracy']:.3f} {_interval(row['ci95'])}",
        "chance": f"{row['chance']:.3f}",
        "silenced": silenced,
        "invalid": row["invalid"],
        "target": "" if "target" not in row else f"{row['target']:.3f} {'reached' if row['reached'] else 'missed'}",
    }


def _interval(bounds: Sequence[float], digits: int = 3) -> str:
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
