"""What can be told of an unheard recording from each layer of the pocket model's encoder, without any decoder.

A small classifier (one hidden layer, attention pooling over time) is trained on the outputs of each layer of the frozen
Whisper-base encoder, over the training windows' recordings, and scored on those of the validation windows. It bounds
what a projector and a decoder on that layer can be expected to learn from these recordings.

    python benchmarks/encoder_layers.py --output docs/data/encoder_layers.json

About 15 minutes on one core; the windows must have been drawn (`headrouter-pl data pocket`), not encoded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from headrouter_pl.cli.tables import dump_figures, machine
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import heard, labels_of
from headrouter_pl.data.pocket.scenes import render
from headrouter_pl.data.pocket.windows import FRAMES_PER_SECOND, EncodedWindows
from headrouter_pl.models.pocket import load_pocket

ATTRIBUTES = ("number", "letter", "phrase", "gender", "language", "voice", "sound", "instrument")
WIDTH, STEPS, BATCH, RATE = 576, 500, 64, 1e-3
Recording = tuple[np.ndarray, dict[str, str]]  # float16 [layers, frames, width], labels


def listen(split: str, windows: int) -> list[Recording]:
    """Every recording of so many windows, as each layer of the encoder has it: pooled in pairs, layer-normed."""
    model, processor = load_pocket(dtype=torch.bfloat16)
    encoder = model.model.audio_tower
    found: list[np.ndarray] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        states = output[0] if isinstance(output, tuple) else output
        states = encoder.avg_pooler(states.permute(0, 2, 1)).permute(0, 2, 1).float()
        found.append(F.layer_norm(states, states.shape[-1:])[0].half().numpy())

    for layer in encoder.layers:
        layer.register_forward_hook(keep)
    pools = Pools.of(ClipLibrary.open(), split)
    recordings = []
    for scene in tqdm(EncodedWindows(pools, windows).scenes, desc=f"encoding, {split}", unit="window"):
        found.clear()
        inputs = processor(text=processor.audio_token, audio=render(scene, pools.library))
        with torch.inference_mode():
            encoder(inputs["input_features"].bfloat16(), input_features_mask=inputs["input_features_mask"])
        states = np.stack(found)
        for event in scene.events:
            first, last = event.start * FRAMES_PER_SECOND, event.end * FRAMES_PER_SECOND
            recordings.append((states[:, int(first) : int(np.ceil(last))], labels_of(heard(pools.library, event))))
    return recordings


class Probe(nn.Module):
    """A classifier of each attribute over one trunk."""

    def __init__(self, channels: int, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(channels, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.weight = nn.ModuleDict({name: nn.Linear(WIDTH, 1) for name in classes})
        self.answer = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in classes.items()})

    def forward(self, states: Tensor, inside: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, of states ``[n, frames, channels]``."""
        hidden = self.trunk(states)
        logits = {}
        for name, answer in self.answer.items():
            shares = self.weight[name](hidden).squeeze(-1).masked_fill(~inside, -1e9).softmax(-1)
            logits[name] = answer((hidden * shares[..., None]).sum(1))
        return logits


def probe(train: list[Recording], held_out: list[Recording], layer: int) -> dict[str, tuple[float, float, int]]:
    """Accuracy on training recordings, on others, and how many others, by attribute."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    classes = {name: sorted({labels[name] for _, labels in train if name in labels}) for name in ATTRIBUTES}
    some = np.concatenate([states[layer].astype(np.float32) for states, _ in train[:800]])
    mean, spread = torch.from_numpy(some.mean(0)), torch.from_numpy(some.std(0) + 1e-3)
    model = Probe(some.shape[1], classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    by_length = np.argsort([states.shape[1] for states, _ in train])

    def batch(rows: list[Recording]) -> tuple[Tensor, Tensor]:
        parts = [(torch.from_numpy(states[layer].astype(np.float32)) - mean) / spread for states, _ in rows]
        lengths = torch.tensor([len(part) for part in parts])
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    for _ in tqdm(range(STEPS), desc=f"probing layer {layer + 1}", leave=False):
        first = rng.integers(max(1, len(train) - 4 * BATCH))
        rows = [train[i] for i in rng.choice(by_length[first : first + 4 * BATCH], BATCH, replace=False)]
        states, inside = batch(rows)
        states = (states + 0.3 * torch.randn_like(states)) * (torch.rand(len(rows), 1, states.shape[2]) > 0.1)
        seen = inside & (torch.rand(inside.shape) > 0.3)
        logits = model(states, torch.where(seen.any(1, keepdim=True), seen, inside))
        loss = states.new_zeros(())
        for name, values in classes.items():
            if chosen := [i for i, (_, labels) in enumerate(rows) if name in labels]:
                right = torch.tensor([values.index(rows[i][1][name]) for i in chosen])
                loss = loss + F.cross_entropy(logits[name][chosen], right) * len(chosen) ** 0.5
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()

    @torch.inference_mode()
    def score(recordings: list[Recording]) -> dict[str, list[bool]]:
        right: dict[str, list[bool]] = {name: [] for name in classes}
        order = sorted(recordings, key=lambda recording: recording[0].shape[1])
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits = model(*batch(rows))
            for name, values in classes.items():
                for row, (_, labels) in enumerate(rows):
                    if labels.get(name) in values:
                        right[name].append(values[int(logits[name][row].argmax())] == labels[name])
        return right

    trained, other = score(train[:1000]), score(held_out)
    return {
        name: (float(np.mean(trained[name])), float(np.mean(other[name])), len(other[name]))
        for name in classes
        if trained[name] and other[name]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=320, help="training windows of 30 s")
    parser.add_argument("--validation_windows", type=int, default=100)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    train, held_out = listen("train", args.windows), listen("validation", args.validation_windows)
    rows = []
    for layer in range(train[0][0].shape[0]):
        for name, (trained, other, n) in probe(train, held_out, layer).items():
            rows.append({"layer": layer + 1, "attribute": name, "trained": round(trained, 4),
                         "accuracy": round(other, 4), "n": n})  # fmt: skip
            print(f"layer {layer + 1}, {name}: {other:.2f} (n = {n}; on training recordings {trained:.2f})", flush=True)
    figures = {"command": f"python {' '.join(sys.argv)}", "machine": machine(), "rows": rows}
    if args.output is not None:
        args.output.write_text(dump_figures(figures), encoding="utf-8")
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
