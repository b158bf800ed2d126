"""Galleries of noise and of made-up reports."""

from __future__ import annotations

import numpy as np
import torch

from headrouter_pl.pictures import Gallery, GallerySample, GalleryView
from headrouter_pl.pruning.report import SampleReport

RATE = 16_000
TOKENS_PER_SECOND = 25
LAYERS, HEADS = (1, 4), 9


def make_report(seconds: float, ratio: float, seed: int = 0) -> SampleReport:
    """Of tokens whose importance rises and falls, so that those of the middle are kept."""
    rng = np.random.default_rng(seed)
    tokens = round(seconds * TOKENS_PER_SECOND)
    hill = np.exp(-np.square(np.linspace(-2, 2, tokens))) + 0.05 * rng.random(tokens)
    order = np.argsort(-hill)[: max(1, round(ratio * tokens))]
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[order.copy()] = True
    heads = torch.from_numpy(rng.random(len(LAYERS) * HEADS)).float()
    return SampleReport(
        seen=tokens, kept=mask.nonzero()[:, 0] + 7, route={"semantic": 0.2, "acoustic": 0.8},
        types={"semantic": 0.2, "sound": 0.65, "voice": 0.15},
        importance=torch.from_numpy(hill / hill.sum()).float(), selectivity=heads / 2,
        head_weights=heads / heads.sum(), tokens_per_layer=(tokens,) * 8, layer=5, probed_layers=LAYERS,
        prompt="Which sound?", kept_mask=mask,
    )  # fmt: skip


def make_sample(number: int, seconds: float = 4.0, ratios: tuple[float, ...] = (0.7, 0.3)) -> GallerySample:
    """Two scorers at each ratio; the second does not route."""
    audio = np.random.default_rng(number).normal(scale=0.1, size=round(seconds * RATE)).astype(np.float32)
    audio *= np.linspace(0.1, 1, len(audio), dtype=np.float32)
    views = []
    for seed, scorer in enumerate(("headrouter", "random")):
        for ratio in ratios:
            report = make_report(seconds, ratio, 10 * number + seed)
            if scorer == "random":
                keep = torch.randperm(report.seen, generator=torch.Generator().manual_seed(number))[: len(report.kept)]
                mask = torch.zeros(report.seen, dtype=torch.bool)
                mask[keep] = True
                report = SampleReport(
                    report.seen, mask.nonzero()[:, 0], {}, {}, torch.rand(report.seen), None, None,
                    report.tokens_per_layer, layer=2, kept_mask=mask,
                )  # fmt: skip
            parts = {"prompt": {"semantic": 0.4, "sound": 0.5, "voice": 0.1}} if report.types else None
            views.append(GalleryView(scorer, ratio, report, f"{scorer} {ratio:g}", right=ratio > 0.5, parts=parts))
    return GallerySample(
        f"clip/{number}", audio, RATE, f"Which sound is heard in <recording> {number}?", "a bell", views, "bell",
        unpruned_right=True, kind="sound", evidence=[(1.0, 2.5)],
    )  # fmt: skip


def make_gallery(count: int, seconds: float = 4.0) -> Gallery:
    gallery = Gallery("A gallery of noise", "made up")
    for number in range(count):
        gallery.add(make_sample(number, seconds))
    return gallery
