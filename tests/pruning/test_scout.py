"""The scout pass: what it measures, against the stock model on the pooled sequence; and what it leaves alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from reference import dropped_from, masked_from
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnsupportedModelError
from headrouter_pl.models import find_lalm
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.pruning import SampleReport
from headrouter_pl.pruning.cost import LayerCost
from headrouter_pl.pruning.timing import time_prefills
from headrouter_pl.scorers import HeadRouterScorer, Probe, Scorer, ScoringInputs, ScoutScorer

CLIPS = [[14], [4, 7], [1]]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No tokenizer")
        yield
    torch.set_num_threads(threads)


@cache
def model_of(name: str, attn: str = "eager") -> Any:
    return tiny.build(name, num_layers=5, attn_implementation=attn)


def batch_of(name: str, side: str = "left", clips: Any = CLIPS) -> dict[str, Tensor]:
    return tiny.inputs(name, model_of(name), clips, padding_side=side)


class Measured(Scorer):
    """Hands out what a probe measured."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.attention = torch.empty(0)

    def score(self, inputs: ScoringInputs) -> Tensor:
        assert inputs.attention is not None
        self.attention = inputs.attention
        return inputs.attention.mean(1)


class Replay(Scorer):
    """Scores tokens as another scorer did."""

    def __init__(self, importance: list[Tensor]) -> None:
        self.importance = importance

    def score(self, inputs: ScoringInputs) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(self.importance, batch_first=True)

    @classmethod
    def of(cls, samples: list[SampleReport]) -> Replay:
        return cls([sample.importance for sample in samples if sample.importance is not None])


def measure(name: str, batch: dict[str, Tensor], probe: Probe, attn: str = "eager", layer: int = 1) -> Tensor:
    scorer = Measured(probe)
    with torch.no_grad(), AudioTokenPruner(0.5, scorer=scorer, layer=layer)(model_of(name, attn)):
        tiny.core(name, model_of(name, attn))(**batch)
    return scorer.attention


# The pass itself


def entering(name: str, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states ``[L, d]`` that enter layer 0, of a batch of one."""
    seen: list[Tensor] = []
    hook = tiny.layers(name, model_of(name))[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tiny.core(name, model_of(name))(**batch)
    hook.remove()
    return seen[0][0]


def slots_of(audio: list[bool], pool: int) -> list[list[int]]:
    """Positions that each slot of the pooled sequence averages."""
    slots: list[list[int]] = []
    for position, is_audio in enumerate(audio):
        grows = is_audio and position > 0 and audio[position - 1] and len(slots[-1]) < pool
        if grows:
            slots[-1].append(position)
        else:
            slots.append([position])
    return slots


def by_hand(name: str, batch: dict[str, Tensor], pool: int, layers: tuple[int, ...], queries: str) -> Tensor:
    """Attention ``[P, N]`` of the stock eager decoder, run on the pooled sequence of a batch of one."""
    model = model_of(name)
    decoder: Any = find_lalm(model).decoder
    hidden = entering(name, batch)
    audio = tiny.audio_mask(name, model, batch["input_ids"])[0].tolist()
    slots = slots_of(audio, pool)
    pooled = torch.stack([hidden[slot].mean(0) for slot in slots])[None]
    pooled = pooled / float(getattr(decoder.config, "embedding_multiplier", 1.0))  # Granite's decoder applies its own
    positions = torch.tensor([[slot[(len(slot) - 1) // 2] for slot in slots]])
    # With a mask, because gaps between positions are taken for packed samples without one.
    output = decoder(
        inputs_embeds=pooled,
        position_ids=positions,
        attention_mask=torch.ones_like(positions),
        output_attentions=True,
        use_cache=False,
    )
    groups = [i for i, slot in enumerate(slots) if audio[slot[0]]]
    asked = list(range(groups[-1] + 1, len(slots)))
    asked = asked[-1:] if queries == "last" else asked
    rows = []
    for layer in layers:
        for head in output.attentions[layer][0]:
            total = torch.zeros(sum(audio))
            for query in asked:
                share = head[query, groups] / head[query, groups].sum()
                tokens = torch.cat([a.expand(len(slots[g])) for a, g in zip(share, groups, strict=True)])
                if queries == "max":
                    total = torch.maximum(total, tokens)
                else:
                    total += tokens / tokens.sum() if queries == "last" else tokens
            rows.append(total / total.sum())
    return torch.stack(rows)


STOCK = [
    "qwen2_audio",
    "voxtral",
    "granite_speech",
    "qwen3_asr",
    "phi4_multimodal",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "audioflamingo3",
]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", STOCK)
def test_it_is_the_stock_decoder_on_pooled_audio(name: str, side: str) -> None:
    batch = batch_of(name, side)
    assert not batch["attention_mask"].all()
    attention = measure(name, batch, Probe(rotary=True, queries="last", pool=4))
    for row in range(len(CLIPS)):
        wanted = by_hand(name, tiny.single(name, model_of(name), batch, row), 4, (3,), "last")  # round(.73 * 5) - 1
        seen = wanted.shape[1]
        torch.testing.assert_close(attention[row, :, :seen], wanted, atol=2e-6, rtol=1e-4)
        assert not attention[row, :, seen:].any()
        assert seen < 5 or wanted.max() > 1.2 / seen


@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("pool", "layers"), [(1, (2,)), (3, (0, 4)), (5, (1, 2, 3)), (64, (4,))])
@pytest.mark.parametrize("queries", ["last", "prompt", "max"])
def test_pools_layers_and_queries(pool: int, layers: tuple[int, ...], queries: Any, attn: str) -> None:
    name = "qwen2_audio"
    batch = batch_of(name)
    attention = measure(name, batch, Probe(rotary=True, queries=queries, pool=pool, layers=layers), attn)
    for row in range(len(CLIPS)):
        wanted = by_hand(name, tiny.single(name, model_of(name), batch, row), pool, layers, queries)
        torch.testing.assert_close(attention[row, :, : wanted.shape[1]], wanted, atol=2e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("keys", ["audio", "all"])
@pytest.mark.parametrize("name", ["qwen2_audio", "phi4_multimodal", "qwen2_5_omni_thinker", "vibevoice_asr"])
def test_groups_of_one_are_the_models_own_pass(name: str, keys: Any, rotary: bool, attn: str) -> None:
    batch = batch_of(name)
    own = measure(name, batch, Probe(rotary=rotary, keys=keys, layers=(0, 2)), attn, layer=3)
    scout = measure(name, batch, Probe(rotary=rotary, keys=keys, layers=(0, 2), pool=1), attn, layer=1)
    torch.testing.assert_close(scout, own, atol=2e-6, rtol=1e-4)


@torch.no_grad()
def test_samples_without_audio_have_none() -> None:
    batch = batch_of("qwen2_audio", clips=[[9], [], [20]])
    attention = measure("qwen2_audio", batch, Probe(rotary=True, queries="last", pool=4))
    assert attention.isfinite().all()
    assert not attention[1].any()
    torch.testing.assert_close(attention.sum(2)[[0, 2]], torch.ones(2, attention.shape[1]))


@torch.no_grad()
def test_groups_are_kept_whole_but_one() -> None:
    batch = batch_of("qwen2_audio", clips=[[22]])
    with AudioTokenPruner(keep_tokens=10, scorer="scout", layer=1)(model_of("qwen2_audio")) as report:
        model_of("qwen2_audio")(**batch)
    first = int(tiny.audio_mask("qwen2_audio", model_of("qwen2_audio"), batch["input_ids"])[0].nonzero()[0])
    kept = torch.bincount((report.samples[0].kept - first) // 4, minlength=6).tolist()
    assert sum(kept) == 10
    assert sum(0 < n < (2 if group == 5 else 4) for group, n in enumerate(kept)) <= 1


@torch.no_grad()
def test_scout_is_the_mean_of_heads() -> None:
    batch = batch_of("qwen2_audio")
    attention = measure("qwen2_audio", batch, Probe(rotary=True, queries="last", pool=4, layers=(2, 4)))
    with AudioTokenPruner(0.5, scorer=ScoutScorer(layers=[2, 4]), layer=1)(model_of("qwen2_audio")) as report:
        model_of("qwen2_audio")(**batch)
    for row, sample in enumerate(report.samples):
        torch.testing.assert_close(sample.importance, attention[row].mean(0)[: sample.seen])


@torch.no_grad()
def test_head_weights_over_a_scout_pass() -> None:
    """Any scorer may ask for the pass."""
    batch = batch_of("qwen2_audio")
    weights = torch.rand(1, 8).softmax(1)
    scorer = HeadRouterScorer(
        HeadProfile("x", types=("sound",), families=("acoustic",), weights=weights, layers=(3, 4)), "selectivity"
    )
    scorer.probe = Probe(rotary=True, queries="last", layers=(3, 4), pool=2)
    attention = measure("qwen2_audio", batch, scorer.probe)
    with AudioTokenPruner(0.5, scorer=scorer, layer=1)(model_of("qwen2_audio")) as report:
        model_of("qwen2_audio")(**batch)
    for row, sample in enumerate(report.samples):
        wanted = (weights[0, :, None] * attention[row]).sum(0)[: sample.seen]
        torch.testing.assert_close(sample.importance, wanted, atol=1e-6, rtol=1e-4)


# What it reads


@torch.no_grad()
def test_answers_and_drafts_are_not_read() -> None:
    name = "audioflamingo3"
    batch = batch_of(name, clips=[[21]])
    importance = []
    for answer in (20, 40):
        ids = batch["input_ids"].clone()
        ids[:, -3:] = answer + torch.arange(3)
        labels = torch.full_like(ids, -100)
        labels[:, -3:] = ids[:, -3:]
        with AudioTokenPruner(0.5, scorer="scout", layer=1)(model_of(name)) as report:
            model_of(name)(**{**batch, "input_ids": ids}, labels=labels)
        importance.append(report.samples[0].importance)
        assert report.prefills[0].scout_rows == ids.shape[1] - 3 - 21 + 6
    assert torch.equal(importance[0], importance[1])


@torch.no_grad()
def test_every_step_without_a_cache_scouts_the_same() -> None:
    name = "qwen2_audio"
    model, batch = model_of(name), batch_of(name, clips=[[21], [6]])
    with AudioTokenPruner(0.4, scorer="scout", layer=1)(model) as report:
        model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert len(report.samples) == 8
    for step in range(1, 4):
        for row in range(2):
            again, first = report.samples[2 * step + row], report.samples[row]
            assert torch.equal(again.kept, first.kept)
            torch.testing.assert_close(again.importance, first.importance, atol=1e-6, rtol=1e-4)


# What it leaves alone


@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_outputs_are_those_of_the_same_choice_without_a_scout(attn: str) -> None:
    """Logits, caches and what recorders see."""
    name = "qwen3_omni_moe_thinker"
    model, batch = model_of(name, attn), batch_of(name)
    want = {"output_hidden_states": True, "output_attentions": attn == "eager"}
    with AudioTokenPruner(0.4, scorer="scout", layer=1)(model) as report:
        scouted = model(**batch, **want)
    with AudioTokenPruner(0.4, scorer=Replay.of(report.samples), layer=1)(model) as again:
        replayed = model(**batch, **want)
    assert [s.kept.tolist() for s in report.samples] == [s.kept.tolist() for s in again.samples]
    assert torch.equal(scouted.logits, replayed.logits)
    assert len(scouted.hidden_states) == 6
    for key in ("hidden_states", "attentions")[: 1 + (attn == "eager")]:
        for one, other in zip(scouted[key], replayed[key], strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_hooks_on_layers_see_the_models_own_pass_only() -> None:
    model, batch = model_of("qwen2_audio"), batch_of("qwen2_audio")
    seen: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
        for layer in tiny.layers("qwen2_audio", model)
    ]
    with AudioTokenPruner(0.4, scorer="scout", layer=1)(model):
        model(**batch)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 5
    assert seen[0] == batch["input_ids"].shape[1]


@torch.no_grad()
def test_there_is_none_where_nothing_is_dropped() -> None:
    model, batch = model_of("qwen2_audio"), batch_of("qwen2_audio")
    calls: list[int] = []
    projection = tiny.layers("qwen2_audio", model)[0].self_attn.q_proj
    hook = projection.register_forward_hook(lambda *_: calls.append(1))
    full = model(**batch).logits
    with AudioTokenPruner(1.0, scorer="scout", layer=1)(model) as report:
        assert torch.equal(model(**batch).logits, full)
    assert len(calls) == 2
    assert report.summary()["flops"] == report.summary()["flops_unpruned"]
    with AudioTokenPruner(0.5, scorer="scout", layer=1)(model) as report:
        model(**batch)
    hook.remove()
    assert len(calls) == 4
    assert report.summary()["flops"] != report.summary()["flops_unpruned"]


@torch.no_grad()
def test_a_second_turn_with_audio() -> None:
    """The cache holds the first turn; masks and positions of the second start after it."""
    name = "qwen2_audio"
    for attn in ("sdpa", "eager"):
        model = model_of(name, attn)
        first, second = batch_of(name, clips=[[21]]), tiny.inputs(name, model, [[16]], seed=5)
        alone = measure(name, second, Probe(rotary=True, queries="last", pool=4), attn)
        scorer = Measured(Probe(rotary=True, queries="last", pool=4))
        with AudioTokenPruner(0.4, scorer=scorer, layer=1)(model):
            held = model(**first, use_cache=True).past_key_values
            ones = torch.ones(1, first["input_ids"].shape[1] + second["input_ids"].shape[1], dtype=torch.long)
            model(**{**second, "attention_mask": ones}, past_key_values=held, use_cache=True)
        torch.testing.assert_close(scorer.attention, alone, atol=2e-6, rtol=1e-4)


# Training


def lora(attn: str = "sdpa", dropout: float = 0.0) -> tuple[Any, dict[str, Tensor]]:
    peft = pytest.importorskip("peft")
    base = tiny.build("audioflamingo3", attn_implementation=attn)
    targets = r".*language_model.*\.[qkvo]_proj"
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, lora_dropout=dropout)
    batch = tiny.inputs("audioflamingo3", base, [[20], [9, 14], [6]])
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-3] = -100
    return peft.get_peft_model(base, config), batch


def gradients(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(7)
    model(**batch, use_cache=False).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", ["plain", "dropout", "autocast", "checkpointing"])
def test_gradients_are_those_of_the_same_choice_without_a_scout(mode: str) -> None:
    model, batch = lora(dropout=0.3 if mode == "dropout" else 0.0)
    find_lalm(model).decoder.train()
    if mode == "checkpointing":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        with AudioTokenPruner(0.4, scorer="scout", layer=1)(model) as report:
            scouted = gradients(model, batch)
        with AudioTokenPruner(0.4, scorer=Replay.of(report.samples), layer=1)(model):
            expected = gradients(model, batch)
    assert len(scouted) == len(expected) == 4 * 4 * 2
    assert all(torch.equal(one, other) for one, other in zip(scouted, expected, strict=True))
    assert all(gradient.any() for gradient in scouted)


def test_the_adapter_scouts_too() -> None:
    model, batch = lora()
    model.eval()
    with torch.no_grad(), AudioTokenPruner(0.4, scorer="scout", layer=1)(model) as report:
        model(**batch)
        with model.disable_adapter():
            model(**batch)
    assert not torch.allclose(report.samples[0].importance, report.samples[3].importance, atol=1e-4)


# Its cost


@torch.no_grad()
def test_flops_include_it() -> None:
    model, batch = model_of("qwen2_audio"), batch_of("qwen2_audio", clips=[[22]])
    length = batch["input_ids"].shape[1]
    scorer = ScoutScorer(layers=[1, 3])
    with (
        AudioTokenPruner(0.5, scorer=scorer, layer=2)(model) as report,
        FlopCounterMode(display=False) as counter,
    ):
        model(**batch)
    counts = {name: sum(value.values()) for name, value in counter.get_flop_counts().items()}
    total = next(value for name, value in counts.items() if name.endswith("language_model"))
    short = length - 22 + 6
    cost, per_pair = LayerCost.of(find_lalm(model), 0), 4 * tiny.HEADS * tiny.HEAD_DIM
    rows = [length] * 2 + [length - 11] * 3 + [short] * 4
    future = sum(per_pair * n * (n - 1) // 2 for n in rows)
    # Beside the layers: the probe of one query and six groups, in two layers.
    probe = 2 * 2 * tiny.HEADS * tiny.HEAD_DIM * 6
    assert (report.prefills[0].scout_layers, report.prefills[0].scout_rows) == (4, short)
    assert report.summary()["flops"] == total - future - probe == sum(cost.flops(n) for n in rows)
    assert report.summary()["flops_unpruned"] == 5 * cost.flops(length)


@torch.no_grad()
def test_timing_sees_it() -> None:
    model, batch = model_of("qwen2_audio"), batch_of("qwen2_audio")
    slow = tiny.layers("qwen2_audio", model)[0].self_attn.q_proj
    hook = slow.register_forward_hook(lambda *_: time.sleep(0.2))
    with time_prefills(model) as seconds, AudioTokenPruner(0.5, scorer="scout", layer=1)(model):
        model(**batch)
    hook.remove()
    assert len(seconds) == 1
    assert seconds[0] > 0.4


# Refused


def test_models_that_cannot_scout() -> None:
    model = tiny.build("gemma3n", num_layers=8)
    with (
        pytest.raises(UnsupportedModelError, match=r"Gemma3n\w+ cannot make a scout pass.*inputs of their own"),
        AudioTokenPruner(0.5, scorer="scout")(model),
    ):
        pass
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_sharded_layers_are_refused() -> None:
    model: Any = tiny.build("qwen2_audio")
    layer = tiny.layers("qwen2_audio", model)[0]
    layer.__class__ = type("FSDPQwen2DecoderLayer", (type("FSDPModule", (), {}), type(layer)), {})
    with (
        pytest.raises(UnsupportedModelError, match="sharded by FSDP2"),
        AudioTokenPruner(0.5, scorer="scout", layer=2)(model),
    ):
        pass


def test_mixed_attention_is_refused() -> None:
    model: Any = tiny.build("qwen2_audio")
    tiny.layers("qwen2_audio", model)[1].self_attn.sliding_window = 8
    with (
        pytest.raises(UnsupportedModelError, match=r"its layers 0\.\.2 mix full and sliding-window attention"),
        AudioTokenPruner(0.5, scorer="scout", layer=2)(model),
    ):
        pass
    with AudioTokenPruner(0.5, scorer=ScoutScorer(layers=[0]), layer=2)(model):
        pass


@pytest.mark.parametrize(
    ("probe", "match"),
    [
        (Probe(pool=0), "at least 1, got 0"),
        (Probe(pool=4, layers=(2, 5)), r"Probe layers \[5\] of \w+ must lie among its 5 layers"),
        (Probe(pool=4, layers=(-1,)), r"Probe layers \[-1\]"),
        (Probe(pool=4, layers=(2, 2)), "must differ"),
    ],
)
def test_probes_that_make_no_sense(probe: Probe, match: str) -> None:
    with (
        pytest.raises(HeadRouterError, match=match),
        AudioTokenPruner(0.5, scorer=Measured(probe))(model_of("qwen2_audio")),
    ):
        pass
    with pytest.raises(ConfigurationError, match="pool must be at least 1"):
        ScoutScorer(pool=0)


def test_keys_of_groups_are_refused() -> None:
    scorer = Measured(Probe(pool=4))
    scorer.reads_keys = True
    with (
        pytest.raises(HeadRouterError, match="Measured reads keys of tokens"),
        AudioTokenPruner(0.5, scorer=scorer)(model_of("qwen2_audio")),
    ):
        pass


# Exactness of the pruned model is crossed with the scout in test_exactness.py; here with what is the scout's own.


@torch.no_grad()
@pytest.mark.parametrize(("pool", "layers", "layer"), [(1, (4,), 1), (3, (0,), 4), (7, (2, 4), 2)])
def test_exactness_whatever_the_depths(pool: int, layers: tuple[int, ...], layer: int) -> None:
    model, batch = model_of("qwen2_audio", "sdpa"), batch_of("qwen2_audio")
    audio = tiny.audio_mask("qwen2_audio", model, batch["input_ids"])
    with AudioTokenPruner(0.4, scorer=ScoutScorer(pool=pool, layers=layers), layer=layer)(model) as report:
        pruned = model(**batch).logits
    dropped = dropped_from(report, audio)
    with masked_from(find_lalm(model).layers, layer, dropped):
        expected = model(**batch, use_cache=False).logits
    kept = batch["attention_mask"].bool() & ~dropped
    assert (pruned - expected)[kept].abs().max() <= 1e-5
