"""Measurements by the pruner's hooks: the same attention as a scorer sees, the same drops as the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from reference import masked_from
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl import AudioTokenPruner
from headrouter_pl.models import find_lalm
from headrouter_pl.models.families import FAMILIES
from headrouter_pl.pruning.measuring import DroppingEngine, Measured, ObservingEngine, measure_attention
from headrouter_pl.scorers import Probe, Scorer, ScoringInputs

torch.set_num_threads(1)

NAMES = [name for name in tiny.FAMILIES if tiny.available(name) and (name in FAMILIES or name == "qwen2_5_omni")]
CLIPS = [[20], [9]]


class Capture(Scorer):
    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.seen: list[Tensor] = []

    def score(self, inputs: ScoringInputs) -> Tensor:
        assert inputs.attention is not None
        self.seen.append(inputs.attention)
        return inputs.attention.mean(1)


def hooks_of(model: Any) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("generate" in vars(module))
        for module in model.modules()
    )


@pytest.mark.parametrize("name", NAMES)
def test_measured_is_what_a_scorer_sees(name: str) -> None:
    model = tiny.build(name, num_layers=6)
    handle = find_lalm(model)
    batch = tiny.inputs(name, model, CLIPS)
    layers = (0, 1) if handle.num_heads(0)[0] == handle.num_heads(1)[0] else (1,)
    scorer = Capture(Probe(layers=layers))
    with torch.no_grad(), AudioTokenPruner(0.5, layer=max(2, handle.lowest_layer), scorer=scorer)(model):
        handle.model(**batch, use_cache=False)
    before = hooks_of(model)
    ran: list[int] = []
    watch = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(handle.layers)
    ]
    measured = measure_attention(handle, batch, Probe(layers=layers))
    for hook in watch:
        hook.remove()
    assert measured is not None
    assert torch.equal(measured.attention, scorer.seen[0])
    assert measured.audio_mask.sum(1).tolist() == tiny.audio_mask(name, model, batch["input_ids"]).sum(1).tolist()
    assert ran == list(range(max(2, handle.lowest_layer)))  # the upper layers did not run
    assert hooks_of(model) == before
    # Nothing is left of the forward that was cut off.
    with torch.no_grad(), AudioTokenPruner(0.5, layer=max(2, handle.lowest_layer), scorer=scorer)(model):
        handle.model(**batch, use_cache=False)
    assert torch.equal(scorer.seen[0], scorer.seen[1])


@pytest.mark.parametrize("name", ["qwen2_audio", "audioflamingo3"])
def test_a_scout_pass_is_measured_before_the_models_own(name: str) -> None:
    model = tiny.build(name, num_layers=6)
    handle = find_lalm(model)
    batch = tiny.inputs(name, model, CLIPS)
    scorer = Capture(Probe(rotary=True, queries="last", layers=(3, 4), pool=4))
    with torch.no_grad(), AudioTokenPruner(0.5, layer=1, scorer=scorer)(model):
        handle.model(**batch, use_cache=False)
    ran: list[int] = []
    watch = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(handle.layers)
    ]
    before = hooks_of(model)
    measured = measure_attention(handle, batch, scorer.probe)
    assert hooks_of(model) == before
    for hook in watch:
        hook.remove()
    assert measured is not None
    assert torch.equal(measured.attention, scorer.seen[0])
    assert ran == [0]


def test_answers_are_no_queries() -> None:
    model = tiny.build("qwen2_audio")
    batch = tiny.inputs("qwen2_audio", model, CLIPS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    handle = find_lalm(model)
    measured = measure_attention(handle, {**batch, "labels": labels}, Probe(layers=(1,)))
    short = {name: value[:, :-2] if value.shape == labels.shape else value for name, value in batch.items()}
    alone = measure_attention(handle, short, Probe(layers=(1,)))
    assert measured is not None
    assert alone is not None
    torch.testing.assert_close(measured.attention, alone.attention)
    other = measure_attention(handle, batch, Probe(layers=(1,)))
    assert other is not None
    assert not torch.allclose(measured.attention, other.attention)


def test_without_audio_nothing_is_measured() -> None:
    model = tiny.build("qwen2_audio")
    assert measure_attention(find_lalm(model), tiny.inputs("qwen2_audio", model, [[]]), Probe(layers=(1,))) is None


def test_observing_changes_no_bit() -> None:
    model = tiny.build("audioflamingo3")
    batch = tiny.inputs("audioflamingo3", model, CLIPS)

    def generate() -> Any:
        return model.generate(**batch, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)

    plain = generate()
    found: list[Measured] = []
    with ObservingEngine(find_lalm(model), Probe(layers=(0, 2)), found.append) as report:
        observed = generate()
    assert torch.equal(plain.sequences, observed.sequences)
    assert all(map(torch.equal, plain.logits, observed.logits))
    assert len(found) == 1  # once a prefill
    assert found[0].attention.shape == (2, 2 * tiny.HEADS, 20)
    assert [len(sample.kept) for sample in report.samples] == [20, 9]


def answered(name: str, model: Any) -> tuple[dict[str, Tensor], Tensor]:
    batch = tiny.inputs(name, model, CLIPS, text_after=8)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, -2:], labels[1, -4:] = batch["input_ids"][0, -2:], batch["input_ids"][1, -4:]
    return batch, labels


def nll_by_loop(logits: Tensor, labels: Tensor) -> list[float]:
    rows = []
    for row in range(len(labels)):
        at = [i for i in range(1, labels.shape[1]) if labels[row, i] != -100]
        rows.append(sum(float(-F.log_softmax(logits[row, i - 1], -1)[labels[row, i]]) for i in at) / len(at))
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_dropping_is_what_pruning_means(name: str) -> None:
    """Against the reference, which masks the dropped keys; each row loses other tokens, and other numbers of them."""
    model = tiny.build(name, num_layers=6)
    handle = find_lalm(model)
    batch, labels = answered(name, model)
    layer = max(2, handle.lowest_layer)
    audio = tiny.audio_mask(name, model, batch["input_ids"])
    seen = audio.sum(1).tolist()
    dropped = torch.zeros(2, max(seen), dtype=torch.bool)
    dropped[0, 4:11] = True
    dropped[1, 0:2] = True
    gone = torch.zeros_like(audio)
    for row in range(2):
        gone[row, audio[row].nonzero()[:, 0]] = dropped[row, : seen[row]]
    engine = DroppingEngine(handle, layer)
    whole, without = engine.answer_nll(batch, labels), engine.answer_nll(batch, labels, dropped)
    with torch.no_grad():
        logits = handle.model(**batch, use_cache=False).logits
        with masked_from(tiny.layers(name, model), layer, gone):
            masked = handle.model(**batch, use_cache=False).logits
    assert whole.tolist() == pytest.approx(nll_by_loop(logits, labels), abs=1e-5)
    assert without.tolist() == pytest.approx(nll_by_loop(masked, labels), abs=1e-5)
    assert (whole - without).abs().max() > 1e-3


def test_a_row_that_drops_nothing_stays_as_it_was() -> None:
    model = tiny.build("qwen2_audio")
    batch, labels = answered("qwen2_audio", model)
    engine = DroppingEngine(find_lalm(model), 2)
    dropped = torch.zeros(2, 20, dtype=torch.bool)
    torch.testing.assert_close(engine.answer_nll(batch, labels, dropped), engine.answer_nll(batch, labels))
    dropped[0, :5] = True
    rise = engine.answer_nll(batch, labels, dropped) - engine.answer_nll(batch, labels)
    assert rise[0].abs() > 1e-3
    assert rise[1].abs() < 1e-5
    assert hooks_of(model) == 0
