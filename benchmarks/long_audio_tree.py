"""Writes a tree in AudioMarathon's layout whose audio is joined real recordings of one to five minutes.

The questions are those of the tests' fixtures and do not fit the audio: the tree shows that long audio goes through the
ten tasks end to end, and what that costs, not how good a model is.

    python benchmarks/long_audio_tree.py ROOT
    headrouter-pl validate --config configs/audiomarathon_pocket.yaml --data.root ROOT
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import read_audio
from headrouter_pl.data.pocket.benchmark import PocketBenchmark

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from benchmark_trees import RATE, write_audiomarathon


def main() -> None:
    """Writes the tree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder to write to")
    parser.add_argument("--split", default="train", choices=["train", "validation", "test"], help="of the recordings")
    parser.add_argument("--lengths", default=[60, 120, 300], type=int, nargs="+", help="seconds, by turns")
    given = parser.parse_args()
    benchmark = PocketBenchmark.open(given.split)
    found: dict[int, list[str]] = {length: [] for length in given.lengths}
    for audio, seconds in dict.fromkeys((item.audio, round(item.seconds)) for item in benchmark.items):
        found.get(seconds, []).append(audio)
    if missing := [length for length, names in found.items() if not names]:
        parser.error(f"the {given.split} split has no audio of {missing} s")
    audios = (next(names) for names in cycle([cycle(names) for names in found.values()]))

    def clip() -> np.ndarray:
        return read_audio(benchmark.folder / next(audios), RATE)

    given.root.mkdir(parents=True, exist_ok=True)
    answers = write_audiomarathon(given.root, clip)
    print(f"{sum(map(len, answers.values()))} samples of {len(answers)} tasks: {given.root}")


if __name__ == "__main__":
    main()
