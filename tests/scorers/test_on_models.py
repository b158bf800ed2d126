"""What scorers see inside real decoders: against eager attention, and against hooks of our own."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from headrouter_pl import AudioTokenPruner
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.pruning import SampleReport
from headrouter_pl.scorers import HeadRouterScorer, Probe, Scorer, ScoringInputs

torch.set_num_threads(1)

CLIPS = [[14], [4, 3], [1]]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No tokenizer")
        yield


@cache
def model_of(name: str) -> Any:
    return tiny.build(name, num_layers=8 if name == "gemma3n" else 4, attn_implementation="eager")


def batch_of(name: str, side: str = "left") -> dict[str, Tensor]:
    return tiny.inputs(name, model_of(name), CLIPS, padding_side=side)


def pruned(name: str, batch: dict[str, Tensor], **options: Any) -> list[SampleReport]:
    with AudioTokenPruner(0.5, **options)(model_of(name)) as report:
        tiny.core(name, model_of(name))(**batch)
    return report.samples


def last_prompt_token(batch: dict[str, Tensor], row: int) -> int:
    return int(batch["attention_mask"][row].nonzero()[-1])


CASES = [
    ("qwen2_audio", 1, "left"),
    ("qwen2_audio", 2, "right"),
    ("qwen2_audio", 3, "left"),
    ("phi4_multimodal", 1, "left"),
    ("phi4_multimodal", 3, "right"),
    ("gemma3n", 3, "left"),
    ("gemma3n", 2, "left"),
    ("qwen2_5_omni_thinker", 1, "left"),
    ("qwen2_5_omni_thinker", 2, "left"),
    ("qwen3_asr", 2, "left"),
    ("granite_speech", 2, "left"),
]


@pytest.mark.parametrize(("name", "layer", "side"), CASES)
def test_fastv_is_the_attention_of_the_model(name: str, layer: int, side: str) -> None:
    batch = batch_of(name, side)
    samples = pruned(name, batch, scorer="fastv", layer=layer)
    attentions = tiny.core(name, model_of(name))(**batch, output_attentions=True).attentions[layer - 1]
    audio = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    assert not batch["attention_mask"].bool().all()
    for row, sample in enumerate(samples):
        wanted = attentions[row, :, last_prompt_token(batch, row)].mean(0)[audio[row]]
        assert sample.importance is not None
        assert len(wanted) == 1 or wanted.max() - wanted.min() > 1e-3
        torch.testing.assert_close(sample.importance, wanted, atol=1e-6, rtol=1e-5)


def read_projections(name: str, batch: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor, float]:
    """Queries ``[B, L, H, d]`` and keys, before rotary, in float64; and the factor on their product."""
    attention: Any = tiny.layers(name, model_of(name))[layer].self_attn
    outputs: dict[str, Tensor] = {}

    def keep(part: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[part] = output.double()

        return hook

    parts = ["qkv_proj"] if hasattr(attention, "qkv_proj") else ["q_proj", "k_proj"]
    hooks = [getattr(attention, part).register_forward_hook(keep(part)) for part in parts]
    tiny.core(name, model_of(name))(**batch)
    for hook in hooks:
        hook.remove()
    dim = attention.head_dim
    if parts == ["qkv_proj"]:
        config = attention.config
        width = config.num_attention_heads * dim
        query = outputs["qkv_proj"][..., :width]
        key = outputs["qkv_proj"][..., width : width + config.num_key_value_heads * dim]
    else:
        query, key = outputs["q_proj"], outputs["k_proj"]
    query, key = query.unflatten(-1, (-1, dim)), key.unflatten(-1, (-1, dim))
    if hasattr(attention, "q_norm"):
        query, key = (
            rms(states) * (norm.weight.double())
            for states, norm in ((query, attention.q_norm), (key, attention.k_norm))
        )
    return query, key, float(attention.scaling)


def rms(states: Tensor) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def looked_at(
    query: Tensor, key: Tensor, scaling: float, row: int, queries: list[int], keys: list[int], audio: list[int]
) -> Tensor:
    """Attention ``[H, N]`` to the audio among the keys, one query and one head at a time."""
    heads, groups = query.shape[2], query.shape[2] // key.shape[2]
    out = torch.zeros(heads, len(audio), dtype=torch.float64)
    for h in range(heads):
        for i in queries:
            logits = torch.stack([query[row, i, h] @ key[row, j, h // groups] for j in keys]) * scaling
            weights = dict(zip(keys, logits.softmax(0).tolist(), strict=True))
            out[h] += torch.tensor([weights[j] for j in audio]) / len(queries)
    return out


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["qwen2_audio", "phi4_multimodal", "gemma3n", "qwen2_5_omni_thinker", "qwen3_asr"])
def test_probes_without_rotary(name: str, layer: int) -> None:
    layer = 3 if name == "gemma3n" else layer
    batch = batch_of(name)
    query, key, scaling = read_projections(name, batch, layer - 1)
    fastv = pruned(name, batch, scorer="fastv-norope", layer=layer)
    routed = pruned(name, batch, scorer="headrouter", layer=layer)
    largest = pruned(name, batch, scorer=HeadRouterScorer("generic", queries="max"), layer=layer)
    sharp = pruned(name, batch, scorer="headrouter", profile="sharp", router="selectivity", layer=layer)
    masks = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    for row in range(len(CLIPS)):
        audio = masks[row].nonzero().flatten().tolist()
        tokens = batch["attention_mask"][row].nonzero().flatten().tolist()
        question = [i for i in tokens if i > audio[-1]]
        assert len(question) >= 6

        wanted = looked_at(query, key, scaling, row, question[-1:], tokens, audio).mean(0)
        torch.testing.assert_close(fastv[row].importance, wanted.float(), atol=1e-6, rtol=1e-4)

        attention = looked_at(query, key, scaling, row, question, audio, audio)
        torch.testing.assert_close(routed[row].importance, attention.mean(0).float(), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(attention.sum(1), torch.ones(len(attention), dtype=torch.float64))
        each = torch.stack([looked_at(query, key, scaling, row, [i], audio, audio) for i in question]).amax(0)
        wanted = (each / each.sum(1, keepdim=True)).mean(0)
        torch.testing.assert_close(largest[row].importance, wanted.float(), atol=1e-6, rtol=1e-4)

        if len(audio) > 1:
            s = 1 + (attention * attention.log()).sum(1) / torch.tensor(len(audio)).double().log()
            torch.testing.assert_close(routed[row].selectivity, s.float(), atol=1e-5, rtol=1e-4)
            weights = s / s.sum()
            torch.testing.assert_close(sharp[row].head_weights, weights.float(), atol=1e-5, rtol=1e-3)
            wanted = (weights[:, None] * attention).sum(0)
            torch.testing.assert_close(sharp[row].importance, wanted.float(), atol=1e-5, rtol=1e-3)


def test_several_layers_are_probed_in_order() -> None:
    name, batch = "qwen2_audio", batch_of("qwen2_audio")
    weights = torch.rand(1, 8).softmax(1)
    profile = HeadProfile("x", types=("semantic",), families=("semantic",), weights=weights, layers=(0, 2))
    samples = pruned(name, batch, profile=profile, router="selectivity", layer=3)
    reads = [read_projections(name, batch, layer) for layer in (0, 2)]
    masks = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    for row, sample in enumerate(samples):
        audio = masks[row].nonzero().flatten().tolist()
        question = list(range(audio[-1] + 1, batch["input_ids"].shape[1]))
        attention = torch.cat([looked_at(*read, row, question, audio, audio) for read in reads])
        wanted = (weights[0, :, None].double() * attention).sum(0)
        torch.testing.assert_close(sample.importance, wanted.float(), atol=1e-6, rtol=1e-4)


class Reader(Scorer):
    """Remembers what it is given."""

    def __init__(self, **wants: Any) -> None:
        vars(self).update(wants)
        self.inputs: Any = None

    def score(self, inputs: ScoringInputs) -> Tensor:
        self.inputs = inputs
        return torch.rand(inputs.audio_mask.shape)


KEYS = [
    (None, (1,)),
    (Probe(), (1,)),
    (Probe(layers=(0, 1)), (0, 1)),
    (Probe(keys="all", queries="last"), (1,)),
]


@pytest.mark.parametrize(("probe", "layers"), KEYS)
@pytest.mark.parametrize("name", ["qwen2_audio", "phi4_multimodal", "qwen3_asr"])
def test_keys_are_those_of_the_audio_before_rotary(name: str, probe: Probe | None, layers: tuple[int, ...]) -> None:
    batch = batch_of(name)
    reader = Reader(reads_keys=True, probe=probe)
    pruned(name, batch, scorer=reader, layer=2)
    masks = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    wanted = torch.cat([read_projections(name, batch, layer)[1].flatten(2) for layer in layers], 2).float()
    assert reader.inputs.keys.dtype == torch.float32
    for row, mask in enumerate(masks):
        seen = int(mask.sum())
        torch.testing.assert_close(reader.inputs.keys[row, :seen], wanted[row, mask], atol=1e-5, rtol=1e-4)
        assert not reader.inputs.keys[row, seen:].any()
    assert (reader.inputs.attention is None) == (probe is None)
    assert reader.inputs.embeddings is None


@pytest.mark.parametrize("name", ["qwen2_audio", "phi4_multimodal", "granite_speech", "gemma3n"])
def test_embeddings_are_what_enters_layer_0(name: str) -> None:
    batch, seen = batch_of(name), []
    first = tiny.layers(name, model_of(name))[0]
    hook = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    reader = Reader(reads_embeddings=True)
    pruned(name, batch, scorer=reader, layer=3)
    hook.remove()
    hidden = seen[0] if seen[0].dim() == 3 else seen[0][0]
    for row, mask in enumerate(tiny.audio_mask(name, model_of(name), batch["input_ids"])):
        count = int(mask.sum())
        assert torch.equal(reader.inputs.embeddings[row, :count], hidden[row, mask].float())
        assert not reader.inputs.embeddings[row, count:].any()
    assert reader.inputs.keys is None
    assert reader.inputs.attention is None


def test_nothing_is_read_that_is_not_asked_for() -> None:
    name, batch = "qwen2_audio", batch_of("qwen2_audio")
    reader = Reader()
    layer = tiny.layers(name, model_of(name))[0]
    with AudioTokenPruner(0.5, scorer=reader)(model_of(name)):
        assert not layer._forward_pre_hooks
        assert not layer.self_attn.k_proj._forward_hooks
        tiny.core(name, model_of(name))(**batch)
    assert (reader.inputs.keys, reader.inputs.embeddings, reader.inputs.attention) == (None, None, None)


PLAIN = ["fastv", "fastv-norope", "headrouter", "random", "stride", "segmentwise", "dart", "scout"]


@pytest.mark.parametrize("scorer", PLAIN)
def test_the_most_important_are_kept(scorer: str) -> None:
    name, batch = "qwen2_audio", batch_of("qwen2_audio")
    audio = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    for row, sample in enumerate(pruned(name, batch, scorer=scorer, layer=2)):
        assert sample.importance is not None
        scores = sample.importance.tolist()
        count = max(1, round(len(scores) * 0.5))
        best = sorted(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count])
        assert sample.kept.tolist() == audio[row].nonzero().flatten()[best].tolist()


@pytest.mark.parametrize("scorer", PLAIN)
def test_a_sample_is_scored_the_same_alone(scorer: str) -> None:
    name, batch = "qwen2_audio", batch_of("qwen2_audio")
    for row, sample in enumerate(pruned(name, batch, scorer=scorer, layer=2)[:2]):
        (alone,) = pruned(name, tiny.single(name, model_of(name), batch, row), scorer=scorer, layer=2)
        assert sample.importance is not None
        if scorer != "random":
            torch.testing.assert_close(alone.importance, sample.importance, atol=1e-5, rtol=1e-4)
        offset = batch["attention_mask"][row].argmax()
        assert torch.equal(alone.kept + offset, sample.kept)


def test_scores_are_not_rounded_under_autocast() -> None:
    name, batch = "qwen2_audio", batch_of("qwen2_audio")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        query, key, scaling = read_projections(name, batch, 1)
        samples = pruned(name, batch, scorer="headrouter", layer=2)
    masks = tiny.audio_mask(name, model_of(name), batch["input_ids"])
    for row, sample in enumerate(samples):
        audio = masks[row].nonzero().flatten().tolist()
        question = list(range(audio[-1] + 1, batch["input_ids"].shape[1]))
        wanted = looked_at(query, key, scaling, row, question, audio, audio).mean(0)
        torch.testing.assert_close(sample.importance, wanted.float(), atol=1e-6, rtol=1e-4)
