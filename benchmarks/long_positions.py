"""Why long audio is answered worse: too many tokens, or positions that training has never seen?

Of each recording the decoder is given only the tokens that hold the answer, with half a second about them: once at
the positions where they stand in the recording, once moved together as if nothing had been between. What the two differ
by is owed to positions alone.

    python benchmarks/long_positions.py --output docs/data/long_positions.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import groupby
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from headrouter_pl.cli.pocket import MAX_NEW_TOKENS, choose_items, load_model, weights_digest
from headrouter_pl.cli.tables import dump_figures, format_table, machine
from headrouter_pl.data.audio import read_audio
from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
from headrouter_pl.data.pocket.scoring import score_answer
from headrouter_pl.models.answering import EncodedPrompt, EncodedPrompter
from headrouter_pl.models.caches import cache_argument
from headrouter_pl.models.encoded import encoded_audio
from headrouter_pl.results import write_text

MARGIN = 12  # tokens before and after the evidence
PLACES = ("together", "where they stand")


@torch.inference_mode()
def answer(model: Any, prompter: EncodedPrompter, item: PocketItem, encoded: EncodedPrompt, place: str) -> str:
    """The greedy answer to a question about the tokens that hold it."""
    inputs = prompter.inputs(encoded, item.prompt)
    tokens, count = inputs["input_ids"].shape[1], encoded.features.shape[1]
    evidence = np.zeros(count, dtype=bool)
    for first, last in item.evidence_tokens:
        evidence[max(0, first - MARGIN) : last + MARGIN] = True
    heard = torch.from_numpy(np.flatnonzero(evidence))
    audio, after = torch.arange(encoded.start), torch.arange(encoded.start + count, tokens)
    kept = torch.cat([audio, encoded.start + heard, after])
    positions = (kept if place == "where they stand" else torch.arange(len(kept)))[None]
    held_in = {cache_argument(model): DynamicCache(), "use_cache": True}
    output = model(
        input_ids=inputs["input_ids"][:, kept],
        input_features=inputs["input_features"][:, heard],
        input_features_mask=torch.ones(1, len(heard), dtype=torch.long),
        position_ids=positions,
        logits_to_keep=1,
        **held_in,
    )
    said: list[int] = []
    while len(said) < MAX_NEW_TOKENS:
        token = output.logits[:, -1:].argmax(-1)
        if int(token) == prompter.processor.tokenizer.eos_token_id:
            break
        said.append(int(token))
        positions = positions[:, -1:] + 1
        output = model(input_ids=token, position_ids=positions, **held_in)
    return str(prompter.processor.tokenizer.decode(said, skip_special_tokens=True)).strip()


def main() -> None:
    """Asks, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="shipped", help='"shipped", or a folder of exported weights')
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[60, 120, 300], help="seconds")
    parser.add_argument("--max_scenes", type=int, default=12, help="of each length")
    parser.add_argument("--output", help="JSON")
    given = parser.parse_args()
    benchmark = PocketBenchmark.open(given.split)
    items = choose_items(benchmark.items, given.lengths, given.max_scenes)
    model, processor = load_model(given.weights, None, torch.float32)
    prompter = EncodedPrompter(model, processor)
    rate = processor.feature_extractor.sampling_rate
    right: dict[tuple[int, str], list[bool]] = {(length, place): [] for length in given.lengths for place in PLACES}
    with tqdm(total=len(items), unit="question") as bar:
        for audio, scene in groupby(items, key=lambda item: item.audio):
            encoded = prompter.encode(read_audio(benchmark.folder / audio, rate))
            with encoded_audio(model):
                for item in scene:
                    for place in PLACES:
                        text = answer(model, prompter, item, encoded, place)
                        right[round(item.seconds), place].append(score_answer(item, text).right)
                    bar.update()
    rows = [
        {"length_s": length, "positions": place, "n": len(scores), "accuracy": round(float(np.mean(scores)), 4)}
        for (length, place), scores in right.items()
        if scores
    ]
    print(format_table(rows))
    if given.output:
        figures = {
            "split": given.split,
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "weights": weights_digest(model),
            "rows": rows,
        }
        write_text(given.output, dump_figures(figures))


if __name__ == "__main__":
    main()
