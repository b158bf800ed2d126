"""What the report says of a pruned batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from headrouter_pl import AudioTokenPruner, PruningReport
from headrouter_pl.profiles import HeadProfile

torch.set_num_threads(1)

NAME = "qwen2_audio"
CLIPS = [[20], [9, 14], [], [1]]
SEEN = [20, 23, 0, 1]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No tokenizer")
        yield


@cache
def model() -> Any:
    return tiny.build(NAME)


def batch_of(side: str = "left", clips: list[list[int]] = CLIPS) -> dict[str, Tensor]:
    return tiny.inputs(NAME, model(), clips, padding_side=side)


def report_of(batch: dict[str, Tensor], *args: Any, **options: Any) -> PruningReport:
    with AudioTokenPruner(*args, **{"scorer": "stride", "layer": 2, **options})(model()) as report:
        model()(**batch)
    return report


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scorer", ["headrouter", "fastv", "stride", "random"])
@pytest.mark.parametrize("budget", [{"keep_ratio": 0.3}, {"keep_tokens": 4}, {"keep_ratio": 1.0}], ids=str)
def test_kept_are_audio_positions_in_order(side: str, scorer: str, budget: dict[str, Any]) -> None:
    batch = batch_of(side)
    samples = report_of(batch, **budget, scorer=scorer).samples
    audio = tiny.audio_mask(NAME, model(), batch["input_ids"])
    assert [sample.seen for sample in samples] == SEEN
    for row, sample in enumerate(samples):
        positions = audio[row].nonzero().flatten().tolist()
        kept = sample.kept.tolist()
        assert kept == sorted(set(kept))
        assert set(kept) <= set(positions)
        if "keep_tokens" in budget:
            count = min(4, len(positions))
        else:
            count = min(len(positions), max(1, round(budget["keep_ratio"] * len(positions))))
        assert len(kept) == count
        assert sample.keep_ratio == (count / len(positions) if positions else 1)
        assert sample.tokens_per_layer == (len(positions),) * 2 + (count,) * 2
        if budget == {"keep_ratio": 1.0}:
            assert sample.importance is None
        else:
            assert sample.importance is not None
            assert sample.importance.shape == (len(positions),)


def test_sums() -> None:
    report = report_of(batch_of(), 0.3)
    first = report.summary()
    assert first["samples"] == 4
    assert first["audio_tokens_seen"] == sum(SEEN) == sum(sample.seen for sample in report.samples)
    assert first["audio_tokens_kept"] == 6 + 7 + 0 + 1 == sum(len(sample.kept) for sample in report.samples)
    assert first["keep_ratio"] == 14 / 44
    assert 0 < first["flops"] < first["flops_unpruned"]


def test_prefills_add_up() -> None:
    with AudioTokenPruner(0.3, scorer="stride")(model()) as report:
        model()(**batch_of())
        first = report.summary()
        model()(**batch_of("right", [[5]]))
        second = report.summary()
        model().generate(**batch_of(clips=[[5]]), max_new_tokens=3)
    assert len(report.samples) == 6
    assert [sample.seen for sample in report.samples] == [*SEEN, 5, 5]
    assert (second["samples"], second["audio_tokens_seen"]) == (5, 49)
    third = report.summary()
    for key in ("samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved", "flops"):
        assert third[key] - second[key] == second[key] - first[key]
    report.clear()
    assert report.samples == []
    assert report.summary()["samples"] == 0


def test_nothing_to_prune() -> None:
    report = report_of(batch_of(clips=[[], []]), 0.3)
    assert report.samples == []
    assert report.summary()["keep_ratio"] == 1
    assert str(report) == "PruningReport: no audio seen"


def test_the_route() -> None:
    profile = HeadProfile("x", centroids=torch.rand(3, 4), bandwidth=0.5)
    report = report_of(batch_of(), 0.3, scorer="headrouter", profile=profile, router="selectivity")
    for sample in report.samples:
        assert list(sample.types) == ["semantic", "sound", "voice"]
        assert sum(sample.types.values()) == pytest.approx(1)
        assert sample.route["semantic"] == pytest.approx(sample.types["semantic"])
        assert sample.route["acoustic"] == pytest.approx(sample.types["sound"] + sample.types["voice"])
        assert sample.selectivity is not None
        assert sample.selectivity.shape == (4,)
        assert sample.head_weights is not None
        torch.testing.assert_close(sample.head_weights, torch.full((4,), 0.25))


def test_without_a_route() -> None:
    for sample in report_of(batch_of(), 0.3).samples:
        assert sample.route == sample.types == {}
        assert sample.selectivity is None
        assert sample.head_weights is None


def test_str() -> None:
    text = str(report_of(batch_of(), 0.3, layer=3)).split("\n")
    assert text[0] == "PruningReport: 4 samples, 14 of 44 audio tokens kept (31.8%) from layer 3 on"
    assert "KV cache after prefill" in text[1]
    assert "GFLOPs" in text[2]
    assert text[3:] == [
        "  sample 0: kept 6 of 20; not routed",
        "  sample 1: kept 7 of 23; not routed",
        "  sample 2: kept 0 of 0; not routed",
        "  sample 3: kept 1 of 1; not routed",
    ]
    routed = str(report_of(batch_of(), 0.3, scorer="headrouter"))
    assert "sample 0: kept 6 of 20; semantic 0.33, acoustic 0.67" in routed
