"""Pictures of what a pruner kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrouter_pl.pictures.mel import mel_spectrogram
from headrouter_pl.pruning.report import SampleReport


@contextmanager
def drawing(path: Path, rows: int, columns: int, *, dpi: int = 130, **layout: Any) -> Iterator[tuple[Any, Any]]:
    """A figure to draw on, written at the end of the block, with its folder; closed even if the block fails.

    Args:
        path: The PNG to write.
        rows: Of panels.
        columns: The same.
        dpi: Dots an inch.
        layout: What else ``matplotlib.pyplot.subplots`` takes.

    Yields:
        The figure, and its axes as an array ``[rows, columns]``.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", **layout)
    try:
        yield figure, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    finally:
        plt.close(figure)


def draw_sample(samples: np.ndarray, sampling_rate: int, report: SampleReport, audio_start: int, path: Path) -> None:
    """Draws the spectrogram with the kept tokens over time, their importance, and the head weights.

    Args:
        samples: float ``[n]``, the audio.
        sampling_rate: In Hz.
        report: What was kept of it.
        audio_start: Position of its first token; the tokens of one clip stand side by side.
        path: The PNG to write.
    """
    seconds = len(samples) / sampling_rate
    token = seconds / report.seen
    kept = np.zeros(report.seen, dtype=bool)
    kept[report.kept.numpy() - audio_start] = True
    with drawing(path, 3, 1, figsize=(11, 7.5), height_ratios=(3, 1.6, 1.2)) as (_, axes):
        top, middle, bottom = axes[:, 0]
        mel = mel_spectrogram(samples, sampling_rate)
        top.imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, len(mel)), cmap="magma")
        # Dropped stretches are dimmed, so that what the model still sees is what stands out.
        dim = np.zeros((1, report.seen, 4))
        dim[0, ~kept] = (1, 1, 1, 0.62)
        top.imshow(dim, aspect="auto", extent=(0, seconds, 0, len(mel)), interpolation="nearest")
        route = ", ".join(f"{name} {value:.2f}" for name, value in report.route.items())
        top.set_title(
            f"{int(kept.sum())} of {report.seen} audio tokens kept" + (f"  ·  route: {route}" if route else "")
        )
        top.set_ylabel("mel band (dropped: pale)")
        times = (np.arange(report.seen) + 0.5) * token
        if report.importance is not None:
            importance = report.importance.numpy()
            middle.plot(times, importance, color="0.6", linewidth=0.8, label="all tokens")
            middle.plot(times[kept], importance[kept], ".", color="C3", markersize=3, label="kept")
            if (importance > 0).all():  # weights on logarithms give signed scores
                middle.set_yscale("log")
            middle.legend(loc="upper right", fontsize=8)
        middle.set_xlim(0, seconds)
        middle.set_ylabel("importance")
        middle.set_xlabel("time / s")
        if report.head_weights is not None:
            heads = np.arange(len(report.head_weights))
            bottom.bar(heads - 0.2, report.head_weights.numpy(), width=0.4, color="C0", label="weight")
            if report.selectivity is not None:
                bottom.bar(heads + 0.2, report.selectivity.numpy(), width=0.4, color="C1", label="selectivity")
            layers = report.probed_layers
            per_layer = len(heads) // max(1, len(layers))
            if len(layers) > 1:
                bottom.set_xticks(
                    [number * per_layer for number in range(len(layers))], [f"{layer}" for layer in layers]
                )
            else:
                bottom.set_xticks(heads)
            bottom.legend(loc="upper right", fontsize=8, ncols=2)
            bottom.set_xlabel(
                f"heads of the probed layers, {per_layer} each; at its layer's number each first one"
                if len(layers) > 1 else f"head of layer {layers[0]}" if layers else "head"
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeptRow:
    """What was kept for one question.

    Attributes:
        title: The question.
        reports: Keep ratio -> what was kept.
        audio_start: Position of the first audio token.
        evidence: ``(start, end)`` in seconds of what must be heard to answer.
    """

    title: str
    reports: Mapping[float, SampleReport]
    audio_start: int
    evidence: Sequence[tuple[float, float]] = ()


def draw_kept(samples: np.ndarray, sampling_rate: int, rows: Sequence[KeptRow], path: Path) -> None:
    """Draws one audio's spectrogram, and below it the tokens kept for each question at each ratio.

    Args:
        samples: float ``[n]``, the audio.
        sampling_rate: In Hz.
        rows: The questions about it; stretches of evidence are framed.
        path: The PNG to write.
    """
    seconds = len(samples) / sampling_rate
    heights = [3.0, *(0.5 + 0.35 * len(row.reports) for row in rows)]
    size = (11, 1.2 + sum(heights))
    with drawing(path, len(heights), 1, figsize=size, height_ratios=heights, sharex=True) as (_, panels):
        axes = panels[:, 0]
        mel = mel_spectrogram(samples, sampling_rate)
        axes[0].imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, len(mel)), cmap="magma")
        axes[0].set_ylabel("mel band")
        for axis, row in zip(axes[1:], rows, strict=True):
            kept = np.zeros((len(row.reports), next(iter(row.reports.values())).seen), dtype=bool)
            for line, report in zip(kept, row.reports.values(), strict=True):
                line[report.kept.numpy() - row.audio_start] = True
            axis.imshow(
                kept, aspect="auto", cmap="Greys", vmin=0, vmax=1.6, interpolation="nearest",
                extent=(0, seconds, len(kept), 0),
            )  # fmt: skip
            for start, end in row.evidence:
                axis.axvspan(start, end, facecolor="none", edgecolor="C3", linewidth=1.8)
            axis.set_yticks(np.arange(len(kept)) + 0.5, [f"{ratio:g}" for ratio in row.reports])
            axis.set_ylabel("kept")
            axis.set_title(row.title, fontsize=9)
        axes[-1].set_xlabel("time / s  (framed: where the answer is)")
