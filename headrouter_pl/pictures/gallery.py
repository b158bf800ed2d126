"""One HTML file to look at what a pruner kept, and to listen to it: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.pictures.mel import mel_spectrogram

if TYPE_CHECKING:
    from headrouter_pl.profiles import HeadProfile
    from headrouter_pl.pruning.report import SampleReport
    from headrouter_pl.routers import Router

__all__ = ["Gallery", "GallerySample", "GalleryView", "route_parts"]

_BANDS = 64
_COLUMNS = 2000  # of a spectrogram, at most
_HOP = 0.02  # seconds
_LEVELS = 48  # shades of grey; more cannot be told apart and compress badly
_MP3 = 0.8  # libsndfile's compression level: 40 kbit/s at 16 kHz


@dataclass(frozen=True, eq=False)
class GalleryView:
    """A sample under one pruner.

    Attributes:
        scorer: What to call the pruning method.
        keep_ratio: The ratio that was asked for.
        report: What was kept.
        answer: What the model said.
        right: Whether that is right; None where it is not known.
        parts: Route by each part of the router alone; see :func:`route_parts`.
    """

    scorer: str
    keep_ratio: float
    report: SampleReport
    answer: str
    right: bool | None = None
    parts: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, eq=False)
class GallerySample:
    """A question about audio, with what the model said unpruned and under each pruner.

    Attributes:
        key: What to call it.
        audio: float ``[n]``, as much of it as the model hears.
        sampling_rate: In Hz.
        question: As the model was asked.
        unpruned: What the model says without a pruner.
        views: At least one, no two of the same scorer and ratio.
        answer: The right answer; "" if it is not known.
        unpruned_right: Whether the unpruned answer is right.
        kind: Type or task of the question, to find it by.
        evidence: ``(start, end)`` in seconds of what must be heard to answer.
    """

    key: str
    audio: np.ndarray
    sampling_rate: int
    question: str
    unpruned: str
    views: Sequence[GalleryView]
    answer: str = ""
    unpruned_right: bool | None = None
    kind: str = ""
    evidence: Sequence[tuple[float, float]] = ()


class Gallery:
    """Collects samples, and writes them as one page.

    Audio and pictures are compressed as a sample is added, and held once where several questions share them; the page
    reads them when their sample is opened.

    Args:
        title: Of the page.
        note: A line below it, e.g. model and machine.

    Raises:
        HeadRouterError: If soundfile, which compresses the audio, is missing or too old.

    Example::

        gallery = Gallery("My model")
        gallery.add(GallerySample("one", samples, 16_000, question, unpruned, views))
        gallery.write("outputs/gallery.html")
    """

    def __init__(self, title: str = "What was kept", note: str = "") -> None:
        try:
            import soundfile
        except ImportError as error:
            raise HeadRouterError(
                f"A gallery needs soundfile to compress audio ({error}): pip install 'headrouter-pl[demo]'."
            ) from error
        if "MP3" not in soundfile.available_formats():
            raise HeadRouterError("A gallery needs a libsndfile that writes MP3, 1.1 or newer: upgrade soundfile.")
        self.title = title
        self.note = note
        self._index: list[dict[str, Any]] = []
        self._media: dict[str, int] = {}
        self._blocks: list[str] = []

    def __len__(self) -> int:
        return len(self._index)

    def add(self, sample: GallerySample) -> None:
        """Adds a sample.

        Raises:
            HeadRouterError: If it has no audio or no view, or two views of the same scorer and ratio, or if a report
                does not say which tokens were kept.
        """
        names = [(view.scorer, view.keep_ratio) for view in sample.views]
        if not names or len(set(names)) < len(names):
            raise HeadRouterError(f"Sample {sample.key!r} needs views that differ in scorer or ratio, got {names}.")
        if not len(sample.audio) or not all(view.report.seen for view in sample.views):
            raise HeadRouterError(f"Sample {sample.key!r} has no audio to show.")
        curves: list[dict[str, Any]] = []
        views = [_view(view, curves) for view in sample.views]
        self._index.append(
            {"key": sample.key, "question": sample.question, "kind": sample.kind,
             "seconds": round(len(sample.audio) / sample.sampling_rate, 3), "right": sample.unpruned_right,
             "views": [[view.scorer, view.keep_ratio, view.right] for view in sample.views]}
        )  # fmt: skip
        block = _json({
            "answer": sample.answer, "unpruned": sample.unpruned, "media": self._add_media(sample),
            "evidence": [[round(float(a), 3), round(float(b), 3)] for a, b in sample.evidence],
            "tokens": sample.views[0].report.seen, "curves": curves, "views": views,
        })  # fmt: skip
        # After its media, so that a page that is still being read can show its first samples.
        self._blocks.append(f'<script type="application/json" id="s{len(self) - 1}">{block}</script>\n')

    def write(self, path: str | Path) -> Path:
        """Writes the page in one step; a reader finds the old one or the new one.

        Raises:
            HeadRouterError: If there is no sample.
        """
        from headrouter_pl.results import write_text

        if not self._index:
            raise HeadRouterError("The gallery has no sample to show.")
        write_text(path, "".join(self._page()))
        return Path(path)

    def _page(self) -> Iterator[str]:
        assets = files("headrouter_pl.pictures") / "assets"
        page, style, script = (
            (assets / f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
        )
        index = _json({"title": self.title, "note": self.note, "samples": self._index})
        head, tail = page.split("<!-- data -->")
        for marker, text in (("/* style */", style), ("/* script */", script), ("<!-- index -->", index)):
            head = head.replace(marker, text)
        yield head
        yield from self._blocks
        yield tail

    def _add_media(self, sample: GallerySample) -> int:
        """Number of the sample's audio and spectrogram."""
        audio = np.ascontiguousarray(sample.audio, dtype=np.float32)
        digest = hashlib.sha256(audio.tobytes() + str(sample.sampling_rate).encode()).hexdigest()
        if digest not in self._media:
            number = self._media[digest] = len(self._media)
            picture = _png(_shades(mel_spectrogram(audio, sample.sampling_rate, bands=_BANDS, hop=_HOP)))
            for name, data in (("m", picture), ("a", _mp3(audio, sample.sampling_rate))):
                text = base64.b64encode(data).decode()
                self._blocks.append(f'<script type="text/plain" id="{name}{number}">{text}</script>\n')
        return self._media[digest]


def route_parts(router: Router, profile: HeadProfile, report: SampleReport) -> dict[str, dict[str, float]]:
    """What each part of a router alone says of a sample.

    Args:
        router: The router that was at work.
        profile: The head profile it routed to.
        report: Its report of the sample.

    Returns:
        ``"prompt"`` (the prior, by the question) and ``"audio"`` (the likelihood, by selectivity), each type ->
        probability, as far as the router has these parts and the sample was routed.
    """
    from headrouter_pl.routers import JointRouter, PromptPrior, SelectivityRouter

    parts: dict[str, Router] = {}
    if isinstance(router, JointRouter):
        parts = {"prompt": router.prompt, "audio": router.selectivity}
    elif isinstance(router, PromptPrior):
        parts = {"prompt": router}
    elif isinstance(router, SelectivityRouter):
        parts = {"audio": router}
    if report.selectivity is None:
        return {}
    selectivity, prompts = report.selectivity[None], None if report.prompt is None else [report.prompt]
    found = {name: part.route(profile, prompts, selectivity)[0].tolist() for name, part in parts.items()}
    return {name: dict(zip(profile.types, shares, strict=True)) for name, shares in found.items()}


def _view(view: GalleryView, curves: list[dict[str, Any]]) -> dict[str, Any]:
    report = view.report
    if report.kept_mask is None:
        raise HeadRouterError(f"The report of {view.scorer!r} does not say which tokens were kept (kept_mask is None).")
    shares = {"posterior": report.types or report.route, **(view.parts or {})}
    return {
        "scorer": view.scorer,
        "ratio": view.keep_ratio,
        "text": view.answer,
        "kept": _runs(report.kept_mask.numpy()),
        "count": len(report.kept),
        "layer": report.layer,
        "curve": None if report.importance is None else _add_curve(_curve(report.importance.numpy()), curves),
        "heads": None
        if report.head_weights is None
        else {
            "layers": list(report.probed_layers),
            "weights": [float(f"{value:.4g}") for value in report.head_weights.tolist()],
            "selectivity": None
            if report.selectivity is None
            else [float(f"{value:.4g}") for value in report.selectivity.tolist()],
        },
        "route": {part: {name: round(value, 4) for name, value in shares[part].items()} for part in shares}
        if shares["posterior"]
        else None,
    }


def _runs(kept: np.ndarray) -> list[int]:
    """Lengths of the runs of dropped and kept tokens by turns, dropped first."""
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
    return np.diff(np.concatenate([[0], edges, [len(kept)]])).astype(int).tolist()


def _curve(importance: np.ndarray) -> dict[str, Any]:
    """Importance in 16 bits: of its logarithm where all of it is positive."""
    values = importance.astype(np.float64)
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    log = bool((values > 0).all())
    values = np.log10(values) if log else values
    low, high = float(values.min()), float(values.max())
    steps = np.round((values - low) / ((high - low) or 1.0) * 65535).astype("<u2")
    return {"log": log, "low": low, "high": high, "data": base64.b64encode(steps.tobytes()).decode()}


def _add_curve(curve: dict[str, Any], curves: list[dict[str, Any]]) -> int:
    """Its number; most scorers give the same importance at every ratio."""
    if curve not in curves:
        curves.append(curve)
    return curves.index(curve)


def _shades(mel: np.ndarray) -> np.ndarray:
    """uint8 ``[bands, columns]``, high bands first; of columns that are joined, the loudest."""
    frames = mel.shape[1]
    if frames > _COLUMNS:
        edges = np.linspace(0, frames, _COLUMNS, endpoint=False).astype(int)
        mel = np.maximum.reduceat(mel, edges, axis=1)
    shades = np.round((mel[::-1] / 80 + 1).clip(0, 1) * (_LEVELS - 1)) * (255 / (_LEVELS - 1))
    return shades.astype(np.uint8)


def _png(grey: np.ndarray) -> bytes:
    """A grey PNG of uint8 ``[height, width]``."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = grey.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), grey], axis=1).tobytes()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def _mp3(audio: np.ndarray, sampling_rate: int) -> bytes:
    import soundfile

    out = io.BytesIO()
    peak = float(np.abs(audio).max())
    soundfile.write(
        out, audio / max(peak, 1.0), sampling_rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT",
        compression_level=_MP3,
    )  # fmt: skip
    return out.getvalue()


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
