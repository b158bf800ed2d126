"""Figures for loggers show the sums they are of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_gallery import HEADS, LAYERS, make_report

from headrouter_pl.pictures.summary import Summary, as_image

pytest.importorskip("matplotlib")


def test_sums() -> None:
    summary, reports = Summary(), [make_report(4.0, 0.3, seed) for seed in range(3)]
    for report in reports:
        summary.add(report)
    figures = summary.figures()
    assert list(figures) == ["selectivity", "head_weights", "retention", "route"]
    for name in ("selectivity", "head_weights"):
        (image,) = figures[name].axes[0].images
        mean = torch.stack([getattr(report, name) for report in reports]).mean(0)
        np.testing.assert_allclose(image.get_array(), mean.reshape(len(LAYERS), HEADS), rtol=1e-6)
    bars = figures["retention"].axes[0].patches
    kept = torch.stack([report.kept_mask for report in reports if report.kept_mask is not None]).float()
    np.testing.assert_allclose([bar.get_height() for bar in bars], kept.reshape(3, 20, 5).mean((0, 2)), rtol=1e-6)
    heights = [[bar.get_height() for bar in axes.patches] for axes in figures["route"].axes]
    assert [row.index(3.0) for row in heights] == [2, 6, 1]  # .2, .65 and .15, three times
    assert as_image(figures["route"]).shape[2] == 3


def test_what_is_not_there_is_left_out() -> None:
    summary = Summary()
    assert summary.figures() == {}
    plain = replace(make_report(4.0, 0.5), selectivity=None, head_weights=None, types={}, route={})
    summary.add(plain)
    summary.add(replace(plain, seen=0))
    assert summary.samples == 1
    assert list(summary.figures()) == ["retention"]


def test_other_layers_start_anew() -> None:
    summary, report = Summary(), make_report(4.0, 0.5)
    summary.add(report)
    summary.add(replace(report, probed_layers=(0, 1)))
    assert (summary.samples, summary.layers) == (1, (0, 1))


def test_signed_weights() -> None:
    summary, report = Summary(), make_report(4.0, 0.5)
    assert report.head_weights is not None
    summary.add(replace(report, head_weights=report.head_weights - 0.05))
    (image,) = summary.figures()["head_weights"].axes[0].images
    low, high = image.get_clim()
    assert low == -high < 0
