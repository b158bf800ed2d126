#!/usr/bin/env python
"""Writes the weights that come with the package, in float16, out of what the pocket model's training left.

    python scripts/ship_pocket.py outputs/pocket/adapter outputs/pocket_scenes/adapter --output outputs/pocket_mean
    headrouter-pl evaluate --weights outputs/pocket_mean --split validation --silenced false

Of several adapters it writes the mean. Those that ship are in ``headrouter_pl/models/pocket_adapter``.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from headrouter_pl import tensorfile
from headrouter_pl.models.checkpoints import ADAPTER_FILE, PROJECTOR_FILE, load_adapter
from headrouter_pl.models.pocket import load_pocket
from headrouter_pl.models.pocket_weights import export_pocket


def mean(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each tensor over files that hold the same ones, float32."""
    states = [tensorfile.read(file)[1] for file in files]
    for file, state in zip(files, states, strict=True):
        if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in states[0].items()}:
            raise SystemExit(f"{file} is of another adapter than {files[0]}")
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}


def main() -> None:
    """Exports the mean of the adapters given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", type=Path, help="folders that AdapterExport wrote")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(options.adapters[0] / "adapter_config.json", folder)
        for name in (ADAPTER_FILE, PROJECTOR_FILE):
            tensorfile.write(folder / name, mean([adapter / name for adapter in options.adapters]))
        about = {"command": shlex.join(["python", "scripts/ship_pocket.py", *sys.argv[1:]])}
        export_pocket(load_adapter(load_pocket()[0], folder), options.output, about=about)


if __name__ == "__main__":
    main()
