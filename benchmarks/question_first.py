"""Does it help to ask before the audio is heard?

Early layers hardly look at the question, because the audio stands before it: keys of the audio cannot know what will be
asked. Here the question stands before the audio, or before it and after it, and the same methods drop tokens. Their
head weights are the shipped ones, fitted with the question after the audio alone, as the pocket model was trained.

    python benchmarks/question_first.py --output docs/data/question_first.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrouter_pl.cli.method_runner import MethodRunner
from headrouter_pl.cli.pocket import FORMAT, choose_items, items_digest, load_model, weights_digest
from headrouter_pl.cli.tables import dump_figures, format_table, machine
from headrouter_pl.comparison import UNPRUNED, Method, summarize
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.digest import digest
from headrouter_pl.models.answering import EncodedPrompt, EncodedPrompter
from headrouter_pl.results import ResultsLog, write_text
from headrouter_pl.routers.prompt import shipped_prompts

ORDERS = ("after the audio", "before it", "before and after")
METHODS = [
    Method("generic", "headrouter", "generic", layer=3),
    Method("one pass", "headrouter", "pocket-one-pass", layer=3),
    Method("headrouter", "headrouter", "pocket", layer=2),
]


class OrderedPrompter(EncodedPrompter):
    """Puts the question where an order of :data:`ORDERS` says."""

    order: str = ORDERS[0]

    def inputs(self, encoded: EncodedPrompt, prompt: str) -> dict[str, Tensor]:
        """See :meth:`EncodedPrompter.inputs`."""
        # The template puts a message's audio first; the text before it is that of every prompt.
        given = super().inputs(encoded, "" if self.order == "before it" else prompt)
        if self.order != "after the audio":
            question = self.processor.tokenizer(f"{prompt}\n", return_tensors="pt", add_special_tokens=False)
            ids, start = given["input_ids"], encoded.start
            ids = torch.cat([ids[:, :start], question["input_ids"].to(ids.device), ids[:, start:]], 1)
            given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return given


def main() -> None:
    """Asks, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shipped", help='"shipped", or a folder of exported weights')
    parser.add_argument("--keep_ratio", default=0.1, type=float)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 15, 30, 60], help="seconds")
    parser.add_argument("--max_scenes", type=int, help="of each length")
    parser.add_argument("--folder", type=Path, default=Path("outputs/question_first"), help="for the answers")
    parser.add_argument("--output", help="JSON")
    given = parser.parse_args()
    benchmark = PocketBenchmark.open("validation")
    items = choose_items(benchmark.items, given.lengths, given.max_scenes)
    model, processor = load_model(given.weights, None, torch.bfloat16)
    told = {"weights": weights_digest(model), "dtype": "bfloat16", "keep_ratio": given.keep_ratio}
    rows: list[dict[str, Any]] = []
    for order in ORDERS:
        runner = MethodRunner(model, processor, METHODS, [given.keep_ratio], sorted({item.type for item in items}))
        runner.prompter = OrderedPrompter(model, processor)
        runner.prompter.order = order
        settings = {
            "format": FORMAT,
            "prompts": digest(shipped_prompts()),  # what routers by the prompt are fitted on
            **told,
            "methods": runner.describe(),
            "items": items_digest(items),
            "order": order,
        }
        log = ResultsLog(given.folder / f"{order.replace(' ', '_')}.jsonl", settings)
        runner.ask(items, benchmark.folder, log)
        found = summarize(list(log.rows.values()), METHODS, [given.keep_ratio])["rows"]
        whole = {row["method"]: row for row in found if row["task"] == "mean" and row["type"] == "all"}
        for name in (UNPRUNED, *(method.name for method in METHODS)):
            rows.append({
                "question": order,
                "method": name,
                "right": f"{whole[name]['accuracy']:.3f}",
                "percent of unpruned": f"{whole[name]['percent_of_mean']:.1f}",
                "same answers": f"{whole[name]['agreement']:.3f}",
            })  # fmt: skip
    print(format_table(rows))
    if given.output is not None:
        command = shlex.join(["python", "benchmarks/question_first.py", *sys.argv[1:]])
        write_text(given.output, dump_figures({
            "command": command, "machine": machine(), **told, "split": "validation", "questions": len(items),
            "rows": rows,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
