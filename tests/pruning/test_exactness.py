"""Pruning equals the full model with the dropped keys masked from layer K on, in every mode that is claimed."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import strategies
import tiny
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging import version
from reference import dropped_from, masked_from
from torch import Tensor

from headrouter_pl import AudioTokenPruner
from headrouter_pl.models import FAMILIES, find_lalm
from headrouter_pl.scorers import LinearProbeScorer, OracleScorer, Scorer

# The thinker stands for the full Omni model in the longer tables; it is the module that does the work.
NAMES = [name for name in tiny.FAMILIES if name in FAMILIES or name == "qwen2_5_omni"]
MAX_ERROR = 1e-5
MIN_EFFECT = 100 * MAX_ERROR

# (clips of each sample in audio tokens, padding side). Keep counts differ between the samples.
BATCHES = {
    "one": ([[21]], None),
    "left": ([[20], [9, 14], [6]], "left"),
    "right": ([[20], [9, 14], [6]], "right"),
    "no audio in one": ([[20], [], [6]], "left"),
}
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if not tiny.available(request.param):
        pytest.skip("not in the installed transformers")
    return str(request.param)


@cache
def _shared(name: str, attn: str) -> Any:
    return tiny.build(name, attn_implementation=attn)


class Case:
    """A model, a batch, and what full, pruned and reference runs give."""

    settings: dict[str, Any] = {}  # noqa: RUF012 (replaced, not changed)
    evicts = False  # whether decoding misses the dropped keys in the layers below K, too

    def __init__(
        self, name: str, batch: str | dict[str, Tensor] = "left", attn: str = "sdpa", model: Any = None
    ) -> None:
        self.model = _shared(name, attn) if model is None else model
        self.core = tiny.core(name, self.model)
        self.handle = find_lalm(self.model)
        if isinstance(batch, str):
            clips, side = BATCHES[batch]
            batch = tiny.inputs(name, self.model, clips, padding_side=side)
        self.batch = batch
        self.audio = tiny.audio_mask(name, self.model, self.batch["input_ids"])
        self.layer = max(2, self.handle.lowest_layer)

    def pruner(self, **settings: Any) -> AudioTokenPruner:
        defaults = {"keep_ratio": 0.4, "layer": self.layer, "scorer": "random", **self.settings}
        return AudioTokenPruner(**{**defaults, **settings})

    def compare_logits(self, **settings: Any) -> None:
        pruner = self.pruner(**settings)
        with torch.no_grad():
            full = self.core(**self.batch, use_cache=False).logits
            with pruner(self.model) as report:
                pruned = self.core(**self.batch).logits
            dropped = dropped_from(report, self.audio)
            assert dropped.any()
            with masked_from(self.handle.layers, self.layer, dropped):
                expected = self.core(**self.batch, use_cache=False).logits
        kept = self.batch["attention_mask"].bool() & ~dropped
        assert (pruned - expected)[kept].abs().max() <= MAX_ERROR
        assert (full - expected)[kept].abs().max() >= MIN_EFFECT
        assert [sample.seen for sample in report.samples] == self.audio.sum(1).tolist()

    def compare_generate(self, every: int = 1, reference: dict[str, Any] | None = None, **settings: Any) -> None:
        """Tokens and first logits generated under the pruner, against the masked model's without a cache."""
        settings |= {"return_dict_in_generate": True, "output_logits": True}

        def generate(**extra: Any) -> Any:
            torch.manual_seed(0)
            return self.core.generate(**{**self.batch, **settings, **extra})

        with torch.no_grad():
            full = generate()
            with self.pruner()(self.model) as report:
                pruned = generate()
            dropped = dropped_from(report, self.audio, every=every).repeat_interleave(every, 0)
            ends = [dropped.shape[1]] if self.evicts else []
            with masked_from(self.handle.layers, self.layer, dropped, evicted=ends):
                expected = generate(**(reference or {}), use_cache=False)
        assert torch.equal(pruned.sequences, expected.sequences)
        assert (pruned.logits[0] - expected.logits[0]).abs().max() <= MAX_ERROR
        assert (full.logits[0] - expected.logits[0]).abs().max() >= MIN_EFFECT
        if every == 1 and len(pruned.logits) == len(expected.logits):  # not assisted, whose steps are several tokens
            worst = max((a - b).abs().max() for a, b in zip(pruned.logits, expected.logits, strict=True))
            assert worst <= 2 * MAX_ERROR


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_logits(name: str, attn: str, batch: str) -> None:
    Case(name, batch, attn).compare_logits()


@pytest.mark.parametrize(
    "scorer",
    ["headrouter", "fastv", "fastv-norope", "stride", "segmentwise", "dart", "oracle", "linear-probe", "scout"],
)
def test_logits_with_scorers_that_probe(name: str, scorer: str) -> None:
    if scorer == "scout" and name == "gemma3n":
        pytest.skip("its layers take inputs of their own per token, so that it is refused (test_scout.py)")
    made: str | Scorer = scorer
    if scorer == "oracle":
        made = OracleScorer()
        made.evidence = [[(2, 4)], [(0, 1), (5, 9)], []]
    elif scorer == "linear-probe":
        weights = torch.randn(
            1, Case(name).handle.decoder.config.hidden_size, generator=torch.Generator().manual_seed(0)
        )
        made = LinearProbeScorer(weights, torch.zeros(1), ["sound"], ["acoustic"], router="selectivity")
    with pytest.warns(UserWarning, match="No tokenizer") if scorer == "headrouter" else nullcontext():
        Case(name).compare_logits(scorer=made)


def test_logits_with_a_budget(name: str) -> None:
    Case(name).compare_logits(keep_ratio=None, keep_tokens=5)


def test_keeping_everything_is_bit_identical(name: str) -> None:
    case = Case(name)
    with torch.no_grad():
        logits, tokens = case.core(**case.batch).logits, case.core.generate(**case.batch, **GREEDY)
        with case.pruner(keep_ratio=1.0)(case.model) as report:
            assert torch.equal(case.core(**case.batch).logits, logits)
            assert torch.equal(case.core.generate(**case.batch, **GREEDY), tokens)
    assert [len(sample.kept) for sample in report.samples[:3]] == case.audio.sum(1).tolist()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("batch", ["one", "left"])
def test_greedy(name: str, batch: str, cache: str, attn: str) -> None:
    settings: dict[str, Any] = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    if cache == "dynamic":
        settings = {}
    Case(name, batch, attn).compare_generate(**GREEDY, **settings, reference={"cache_implementation": None})


# One window of one clip per sample: stock generate repeats the clips, not the samples, so that with several of them
# per sample its beams hear each other's audio, pruned or not.
def _single_clips(name: str) -> Case:
    model = _shared(name, "sdpa")
    return Case(name, tiny.inputs(name, model, [[12], [9], [6]]), model=model)


def test_beams(name: str) -> None:
    _single_clips(name).compare_generate(every=3, num_beams=3, **GREEDY)


def test_sampling_several_sequences(name: str) -> None:
    if name == "vibevoice_asr":
        pytest.skip("its encoder draws from the same generator at every uncached step, so the reference samples others")
    case = _single_clips(name)
    # A sampled placeholder would be taken for audio by the reference, which reads its own output again.
    special = [i for i in range(case.core.get_output_embeddings().weight.shape[0]) if not 8 <= i < 96]
    case.compare_generate(every=2, num_return_sequences=2, do_sample=True, max_new_tokens=5, suppress_tokens=special)


def test_prompt_lookup(name: str) -> None:
    case = Case(name, "one")
    case.compare_generate(**GREEDY, prompt_lookup_num_tokens=3, reference={"prompt_lookup_num_tokens": None})


def test_assistant_model() -> None:
    assistant = tiny.build("qwen2_audio", num_layers=2, seed=1)
    case = Case("qwen2_audio", "one")
    case.compare_generate(**GREEDY, assistant_model=assistant, reference={"assistant_model": None})


def test_second_turn_on_one_cache() -> None:
    """A conversation goes on, on the cache of its pruned first turn, with more audio."""
    case = Case("qwen2_audio", "one")
    more = tiny.inputs("qwen2_audio", case.model, [[16]], seed=5)
    first = case.batch["input_ids"].shape[1]
    ids = torch.cat((case.batch["input_ids"], more["input_ids"]), 1)
    audio = tiny.audio_mask("qwen2_audio", case.model, ids)
    with torch.no_grad(), case.pruner()(case.model) as report:
        cache = case.core(**case.batch, use_cache=True).past_key_values
        second = {**more, "attention_mask": torch.ones_like(ids)}
        pruned = case.core(**second, past_key_values=cache, use_cache=True).logits
        step = case.core(input_ids=torch.tensor([[33]]), past_key_values=cache, use_cache=True).logits
    kept = torch.cat((report.samples[0].kept, report.samples[1].kept + first))
    dropped = audio.clone()
    dropped[0, kept] = False
    features = [case.batch["input_features"], more["input_features"]]
    masks = [case.batch["feature_attention_mask"], more["feature_attention_mask"]]
    width = max(part.shape[-1] for part in features)
    both = {
        "input_features": torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in features]),
        "feature_attention_mask": torch.cat(
            [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in masks]
        ),
    }
    with torch.no_grad(), masked_from(case.handle.layers, case.layer, dropped):
        longer = torch.cat((ids, torch.tensor([[33]])), 1)
        expected = case.core(input_ids=longer, **both, use_cache=False).logits
    visible = ~dropped[0, first:]
    assert (pruned[0] - expected[0, first:-1])[visible].abs().max() <= MAX_ERROR
    assert (step[0, -1] - expected[0, -1]).abs().max() <= MAX_ERROR


class ScoutCase(Case):
    """Scores from a scout pass, and everything dropped that can be from layer 1 on."""

    settings: dict[str, Any] = {"scorer": "scout", "layer": 1}  # noqa: RUF012

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "gemma3n":
            pytest.skip("its layers are given inputs of their own, so that a scout pass is refused (test_scout.py)")
        super().__init__(name, *args, **kwargs)
        self.layer = 1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_scout_logits(name: str, attn: str, batch: str) -> None:
    ScoutCase(name, batch, attn).compare_logits()


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_scout_greedy(name: str, attn: str, cache: str) -> None:
    settings: dict[str, Any] = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    if cache == "dynamic":
        settings = {}
    ScoutCase(name, "left", attn).compare_generate(**GREEDY, **settings, reference={"cache_implementation": None})


def test_scout_beams(name: str) -> None:
    model = _shared(name, "sdpa")
    case = ScoutCase(name, tiny.inputs(name, model, [[12], [9], [6]]), model=model)
    case.compare_generate(every=3, num_beams=3, **GREEDY)


def test_scout_prompt_lookup(name: str) -> None:
    case = ScoutCase(name, "one")
    case.compare_generate(**GREEDY, prompt_lookup_num_tokens=3, reference={"prompt_lookup_num_tokens": None})


class EvictingCase(Case):
    """The dropped keys leave the layers below K after the prefill."""

    settings: dict[str, Any] = {"evict_early": True}  # noqa: RUF012
    evicts = True

    def compare_generate(self, *args: Any, **settings: Any) -> None:
        super().compare_generate(*args, **settings)
        plain = {**GREEDY, "max_new_tokens": 2, "return_dict_in_generate": True, "output_logits": True}
        with torch.no_grad():
            with self.pruner()(self.model):
                early = self.core.generate(**self.batch, **plain)
            with self.pruner(evict_early=False)(self.model):
                late = self.core.generate(**self.batch, **plain)
        full = [layer.keys.shape[2] for layer in early.past_key_values.layers if not getattr(layer, "is_sliding", True)]
        assert len(set(full)) == 1
        assert full[0] < self.batch["input_ids"].shape[1]
        assert torch.equal(early.logits[0], late.logits[0])  # the prefill stays as it is
        assert (early.logits[1] - late.logits[1]).abs().max() >= MIN_EFFECT


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch", ["one", "left", "no audio in one"])
def test_evicting_greedy(name: str, batch: str, cache: str, attn: str) -> None:
    settings: dict[str, Any] = {} if cache == "dynamic" else {"cache_implementation": cache}
    EvictingCase(name, batch, attn).compare_generate(**GREEDY, **settings, reference=dict.fromkeys(settings))


def test_evicting_beams(name: str) -> None:
    case = EvictingCase(name, _single_clips(name).batch)
    case.compare_generate(every=3, num_beams=3, **GREEDY)


def test_evicting_and_sampling_several_sequences(name: str) -> None:
    if name == "vibevoice_asr":
        pytest.skip("its encoder draws from the same generator at every uncached step, so the reference samples others")
    case = EvictingCase(name, _single_clips(name).batch)
    special = [i for i in range(case.core.get_output_embeddings().weight.shape[0]) if not 8 <= i < 96]
    case.compare_generate(every=2, num_return_sequences=2, do_sample=True, max_new_tokens=5, suppress_tokens=special)


def test_evicting_and_prompt_lookup(name: str) -> None:
    case = EvictingCase(name, "one")
    case.compare_generate(**GREEDY, prompt_lookup_num_tokens=3, reference={"prompt_lookup_num_tokens": None})


def _labels(batch: dict[str, Tensor]) -> Tensor:
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    return labels


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(name: str, checkpointing: bool) -> None:
    # Stock Gemma3n gives NaN gradients for padded batches, pruned or not.
    case = Case(name, "one" if name == "gemma3n" else "left", model=tiny.build(name))
    if checkpointing:
        if not case.core.supports_gradient_checkpointing:
            pytest.skip("its class has no gradient checkpointing")
        if version.parse(transformers.__version__) < version.parse("5.23"):
            pytest.skip("hooks run inside the checkpoint, which is refused")
        case.core.gradient_checkpointing_enable()
    # The decoder alone: it has no dropout, the encoders do.
    case.handle.decoder.train()
    batch = {**case.batch, "labels": _labels(case.batch)}

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        case.core.zero_grad()
        loss = case.core(**batch, use_cache=False).loss
        loss.backward()
        weights = {n: p for n, p in case.handle.layers.named_parameters() if p.grad is not None}
        return loss.detach(), {n: p.grad.clone() for n, p in weights.items()}

    with case.pruner()(case.model) as report:
        loss, gradients = run()
    with masked_from(case.handle.layers, case.layer, dropped_from(report, case.audio)):
        expected_loss, expected = run()
    full_loss, full = run()
    assert abs(loss - expected_loss) <= MAX_ERROR
    assert abs(full_loss - expected_loss) >= MIN_EFFECT
    assert gradients.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    assert max((gradients[n] - expected[n]).abs().max() for n in expected) <= 1e-5 * largest
    assert max((full[n] - expected[n]).abs().max() for n in expected) >= 1e-3 * largest


@pytest.mark.parametrize("state", ["active", "disabled", "merged"])
def test_lora(name: str, state: str) -> None:
    peft = pytest.importorskip("peft")
    base = tiny.core(name, tiny.build(name))
    decoder = next(path for path, module in base.named_modules() if module is find_lalm(base).decoder)
    targets = rf"{re.escape(decoder)}\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|qkv_proj|o_proj)"
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    model.eval()
    core_name = {"qwen2_5_omni": "qwen2_5_omni_thinker"}.get(name, name)
    batch = tiny.inputs(core_name, base, *BATCHES["left"][:1], padding_side="left")
    if state == "merged":
        model.merge_adapter()

    class Wrapped(Case):
        def __init__(self) -> None:
            self.model = self.core = model
            self.handle, self.batch = find_lalm(model), batch
            self.audio = tiny.audio_mask(core_name, base, batch["input_ids"])
            self.layer = max(2, self.handle.lowest_layer)

    case = Wrapped()
    with torch.no_grad():
        plain = model(**batch).logits
        with model.disable_adapter() if state == "disabled" else nullcontext():
            assert torch.equal(model(**batch).logits, plain) == (state != "disabled")
            case.compare_logits(scorer="fastv")
            if name != "gemma3n":
                case.compare_logits(scorer="scout")
            if state == "active":
                case.compare_generate(**GREEDY)


def test_lora_gradients() -> None:
    peft = pytest.importorskip("peft")
    base = tiny.build("audioflamingo3")
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=r".*language_model.*\.[qkvo]_proj", init_lora_weights=False)
    )
    batch = tiny.inputs("audioflamingo3", base, [[20], [9, 14], [6]])
    batch["labels"] = _labels(batch)
    handle, audio = find_lalm(model), tiny.audio_mask("audioflamingo3", base, batch["input_ids"])

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with AudioTokenPruner(0.4, layer=2, scorer="fastv")(model) as report:
        pruned = gradients()
    with masked_from(handle.layers, 2, dropped_from(report, audio)):
        expected = gradients()
    full = gradients()
    assert max((a - b).abs().max() for a, b in zip(pruned, expected, strict=True)) <= MAX_ERROR
    assert max((a - b).abs().max() for a, b in zip(full, expected, strict=True)) >= MIN_EFFECT


def test_training_prompt_excludes_the_answers() -> None:
    """With labels, answer tokens are not queries: the choice is the one that inference would make."""
    case = Case("audioflamingo3", "one")
    ids = case.batch["input_ids"]
    other = ids.clone()
    other[:, -3:] = ids[:, -3:].flip(1) + 1
    labels = _labels(case.batch)
    kept = []
    for answer in (ids, other):
        with (
            torch.no_grad(),
            case.pruner(scorer="headrouter", profile="sharp", tokenizer=_Texts())(case.model) as report,
        ):
            case.core(**{**case.batch, "input_ids": answer}, labels=labels)
        kept.append(report.samples[0].importance)
    assert torch.equal(kept[0], kept[1])
    with torch.no_grad(), case.pruner(scorer="headrouter", profile="sharp", tokenizer=_Texts())(case.model) as report:
        case.core(**{**case.batch, "input_ids": other})
    assert not torch.allclose(report.samples[0].importance, kept[0])


def test_uncached_steps_score_the_prompt_only() -> None:
    case = Case("audioflamingo3", "left")
    pruner = case.pruner(scorer="headrouter", tokenizer=_Texts())
    with torch.no_grad(), pruner(case.model) as report:
        case.core.generate(**case.batch, **GREEDY, use_cache=False)
    steps = len(report.prefills)
    assert steps == GREEDY["max_new_tokens"]
    for step in report.prefills[1:]:
        for sample, first in zip(step.samples, report.prefills[0].samples, strict=True):
            torch.testing.assert_close(sample.importance, first.importance, rtol=1e-4, atol=1e-7)


def test_cache_survives_deepcopy() -> None:
    """Prefix caching: one pruned prefill, several continuations."""
    case = Case("audioflamingo3", "left")
    mask = case.batch["attention_mask"]
    token = torch.full((len(mask), 1), 33)
    with torch.no_grad(), case.pruner()(case.model) as report:
        cache = case.core(**case.batch, use_cache=True).past_key_values
        steps = []
        for _ in range(2):
            again = copy.deepcopy(cache)
            longer = torch.cat((mask, torch.ones_like(token)), 1)
            steps.append(case.core(input_ids=token, attention_mask=longer, past_key_values=again).logits[:, -1])
    dropped = dropped_from(report, case.audio)
    batch = {**case.batch, "input_ids": torch.cat((case.batch["input_ids"], token), 1), "attention_mask": longer}
    with torch.no_grad(), masked_from(case.handle.layers, case.layer, dropped):
        expected = case.core(**batch, use_cache=False).logits[:, -1]
    assert torch.equal(steps[0], steps[1])
    assert (steps[0] - expected).abs().max() <= MAX_ERROR


def test_static_cache_is_reused_by_the_next_generate() -> None:
    case = Case("qwen2_audio", "left")
    other = Case("qwen2_audio", tiny.inputs("qwen2_audio", case.model, [[5], [18], [11]], seed=3), model=case.model)
    for one in (case, other, case):
        one.compare_generate(**GREEDY, cache_implementation="static", reference={"cache_implementation": None})


def test_prompts_of_embeddings_cannot_be_read() -> None:
    case = Case("audioflamingo3", "one")
    embeds = case.model.get_input_embeddings()(case.batch["input_ids"])
    with torch.no_grad(), AudioTokenPruner(0.4, tokenizer=_Texts())(case.model, audio_mask=case.audio):
        with pytest.warns(UserWarning, match="given inputs_embeds alone: prompts cannot be read"):
            case.core(inputs_embeds=embeds, attention_mask=case.batch["attention_mask"])
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            case.core(inputs_embeds=embeds, attention_mask=case.batch["attention_mask"])


def test_audio_mask_for_embeddings() -> None:
    case = Case("audioflamingo3", "left")
    inner = case.handle.model.model
    with torch.no_grad():
        embeds: list[Tensor] = []
        hook = inner.language_model.register_forward_pre_hook(
            lambda m, a, k: embeds.append(k["inputs_embeds"]), with_kwargs=True
        )
        with case.pruner()(case.model) as report:
            expected = case.core(**case.batch).logits
        hook.remove()
        with case.pruner()(case.model, audio_mask=case.audio) as again:
            pruned = case.core(inputs_embeds=embeds[0], attention_mask=case.batch["attention_mask"]).logits
    assert torch.equal(pruned, expected)
    assert [s.kept.tolist() for s in again.samples] == [s.kept.tolist() for s in report.samples]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["qwen2_audio", "gemma3n", "phi4_multimodal"]),
    clips=strategies.clips,
    side=st.sampled_from(["left", "right"]),
    ratio=st.floats(0.01, 0.99),
    layer=st.integers(1, 3),
    before=st.integers(1, 4),
    after=st.integers(1, 8),
    seed=st.integers(0, 3),
)
def test_any_batch(
    name: str, clips: list[list[int]], side: str, ratio: float, layer: int, before: int, after: int, seed: int
) -> None:
    model = _shared(name, "sdpa")
    batch = tiny.inputs(name, model, clips, padding_side=side, text_before=before, text_after=after, seed=seed)
    case = Case(name, batch, model=model)
    layer = min(max(layer, case.handle.lowest_layer), case.handle.highest_layer)
    with torch.no_grad():
        with case.pruner(keep_ratio=ratio, layer=layer)(model) as report:
            pruned = case.core(**batch).logits
        dropped = dropped_from(report, case.audio)
        with masked_from(case.handle.layers, layer, dropped):
            expected = case.core(**batch, use_cache=False).logits
    kept = batch["attention_mask"].bool() & ~dropped
    assert (pruned - expected)[kept].abs().max() <= MAX_ERROR
    for sample, seen in zip(report.samples, case.audio.sum(1).tolist(), strict=True):
        assert len(sample.kept) == (max(1, round(ratio * seen)) if seen else 0)


class _Texts:
    """A tokenizer that knows one question."""

    def batch_decode(self, sequences: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return ["Transcribe the speech."] * len(sequences)
