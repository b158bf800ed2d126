"""What was done to many samples, as matplotlib figures for a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headrouter_pl.pruning.report import SampleReport

__all__ = ["Summary", "as_image"]

_PARTS = 20  # of an audio, in time
_BINS = 10  # of a probability


class Summary:
    """Sums of what reports say, to be drawn.

    Reports are summed for one set of probed layers; one of another set starts anew, as after a change of the model.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all samples."""
        self.samples = 0
        self.layers: tuple[int, ...] = ()
        self.kept: NDArray[np.float64] = np.zeros(_PARTS)
        self.seen: NDArray[np.float64] = np.zeros(_PARTS)
        self.heads: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.routes: dict[str, list[float]] = {}

    def add(self, report: SampleReport) -> None:
        """Counts a sample in, if it has audio."""
        if not report.seen or report.kept_mask is None:
            return
        if self.samples and report.probed_layers != self.layers:
            self.clear()
        self.samples += 1
        self.layers = report.probed_layers
        part = np.arange(report.seen) * _PARTS // report.seen
        self.seen += np.bincount(part, minlength=_PARTS)
        self.kept += np.bincount(part, weights=report.kept_mask.numpy(), minlength=_PARTS)
        for name, values in (("selectivity", report.selectivity), ("head_weights", report.head_weights)):
            if values is not None:
                self.heads[name] = self.heads.get(name, 0.0) + values.double().numpy()
                self.counts[name] = self.counts.get(name, 0) + 1
        for name, share in (report.types or report.route).items():
            self.routes.setdefault(name, []).append(share)

    def figures(self) -> dict[str, Figure]:
        """Figures of what there is: ``selectivity``, ``head_weights``, ``retention`` and ``route``."""
        found: dict[str, Figure] = {}
        for name, total in self.heads.items():
            title = f"{name.replace('_', ' ')}, mean of {self.counts[name]} samples"
            found[name] = _heatmap(total / self.counts[name], self.layers, title)
        if self.samples:
            found["retention"] = _retention(self.kept, self.seen, self.samples)
        if self.routes:
            found["route"] = _routes(self.routes)
        return found


def as_image(figure: Figure) -> NDArray[np.uint8]:
    """The pixels of a figure, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, which would keep every figure, and choose a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def _heatmap(values: NDArray[np.float64], layers: Sequence[int], title: str) -> Figure:
    grid = values.reshape(len(layers) or 1, -1)
    figure = _figure(max(4.5, 0.35 * grid.shape[1] + 1.5), max(1.8, 0.3 * len(grid) + 1.3))
    axes = figure.add_subplot()
    most = float(np.abs(grid).max()) or 1.0
    signed = bool((grid < 0).any())
    picture = axes.imshow(
        grid, cmap="coolwarm" if signed else "viridis", vmin=-most if signed else 0.0, vmax=most, aspect="auto"
    )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_yticks(range(len(grid)), [str(layer) for layer in layers] or ["?"])
    figure.colorbar(picture, ax=axes)
    return figure


def _retention(kept: NDArray[np.float64], seen: NDArray[np.float64], samples: int) -> Figure:
    figure = _figure(5, 3)
    axes = figure.add_subplot()
    share = np.divide(kept, seen, out=np.zeros(len(kept)), where=seen > 0)
    axes.bar((np.arange(len(share)) + 0.5) / len(share), share, width=0.9 / len(share))
    axes.axhline(kept.sum() / seen.sum(), color="0.3", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("place in the audio, from its start to its end")
    axes.set_ylabel("share of tokens kept")
    axes.set_title(f"{int(kept.sum())} of {int(seen.sum())} audio tokens kept, {samples} samples", fontsize=10)
    return figure


def _routes(routes: dict[str, list[float]]) -> Figure:
    figure = _figure(5, 1 + 1.3 * len(routes))
    edges = np.linspace(0, 1, _BINS + 1)
    rows = figure.subplots(len(routes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, shares) in zip(rows, routes.items(), strict=True):
        axes.hist(shares, bins=edges)
        axes.set_ylabel(name)
        axes.set_xlim(0, 1)
    rows[0].set_title(f"samples by probability of each type, n = {len(next(iter(routes.values())))}", fontsize=10)
    rows[-1].set_xlabel("probability")
    return figure
