"""Where pruning could go wrong unnoticed: outputs read at dropped tokens, caches handled by hand, compiled code."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import pytest
import tiny
import torch
from reference import dropped_from, masked_from
from torch import Tensor, nn

from headrouter_pl import AudioTokenPruner, HeadRouterError
from headrouter_pl.models import find_lalm

MAX_ERROR = 1e-5
NAME = "audioflamingo3"


def _batch(model: Any, *clips: int, **settings: Any) -> dict[str, Tensor]:
    return tiny.inputs(NAME, model, [[clip] for clip in clips], **settings)


def _pruner(**settings: Any) -> AudioTokenPruner:
    return AudioTokenPruner(**{"keep_ratio": 0.4, "layer": 2, "scorer": "random", **settings})


def _reference(model: Any, batch: dict[str, Tensor], report: Any, **inputs: Any) -> Any:
    dropped = dropped_from(report, tiny.audio_mask(NAME, model, batch["input_ids"]))
    with torch.no_grad(), masked_from(find_lalm(model).layers, 2, dropped):
        return model(**{**batch, **inputs}, use_cache=False)


@pytest.mark.parametrize("seed", range(4))
def test_a_prompt_that_ends_in_audio(model: Any, seed: int) -> None:
    """Generation starts from the last token, so it is kept, within the budget."""
    batch = _batch(model, 20, 7, text_after=0)
    settings: dict[str, Any] = {
        "max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    from headrouter_pl.scorers import RandomScorer

    with torch.no_grad(), _pruner(scorer=RandomScorer(seed))(model) as report:
        first = model.generate(**batch, **settings).logits[0]
    assert [len(sample.kept) for sample in report.samples] == [8, 3]
    assert all(sample.kept[-1] == batch["input_ids"].shape[1] - 1 for sample in report.samples)
    assert (first - _reference(model, batch, report).logits[:, -1]).abs().max() <= MAX_ERROR


@pytest.mark.parametrize("clips", [[20, 7], [20]])
def test_a_prompt_that_ends_in_audio_without_a_cache(model: Any, clips: list[int]) -> None:
    batch = _batch(model, *clips, text_after=0)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), _pruner(scorer="stride")(model) as report:
        cached = model.generate(**batch, **settings)
        kept = [sample.kept.tolist() for sample in report.samples]
        report.clear()
        uncached = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(cached, uncached)
    for step in report.prefills:
        assert [sample.kept.tolist() for sample in step.samples] == kept


def test_a_label_right_after_the_audio(model: Any) -> None:
    batch = _batch(model, 20, 7)
    audio = tiny.audio_mask(NAME, model, batch["input_ids"])
    labels = torch.where(audio.roll(1, 1) & ~audio, batch["input_ids"], -100)
    assert (labels >= 0).sum() == 2
    with torch.no_grad(), _pruner(keep_tokens=1, keep_ratio=None)(model) as report:
        loss = model(**batch, labels=labels).loss
    assert abs(loss - _reference(model, batch, report, labels=labels).loss) <= MAX_ERROR


def test_hidden_states_stay_full_length(model: Any) -> None:
    batch = _batch(model, 20, 7)
    with torch.no_grad():
        model(**batch, output_hidden_states=True)  # installs the recorder before our hooks
        with _pruner()(model):
            states = model(**batch, output_hidden_states=True).hidden_states
    assert {state.shape[1] for state in states} == {batch["input_ids"].shape[1]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_four_dimensional_masks_show_padding_too(model: Any, side: str) -> None:
    batch = _batch(model, 20, 7, padding_side=side)
    length = batch["input_ids"].shape[1]
    bools = torch.ones(length, length, dtype=torch.bool).tril() & batch["attention_mask"].bool()[:, None, None]
    additive = torch.zeros(bools.shape).masked_fill(~bools, torch.finfo(torch.float32).min)
    kept = []
    for mask in (batch["attention_mask"], bools, additive):
        with torch.no_grad(), _pruner(scorer="fastv")(model) as report:
            model(**{**batch, "attention_mask": mask})
        kept.append([sample.kept.tolist() for sample in report.samples])
    assert kept[0] == kept[1] == kept[2]


class TestCaches:
    @pytest.mark.parametrize("scorer", ["fastv", "headrouter"])
    def test_a_turn_of_new_tokens_alone_is_scored_as_the_whole(self, model: Any, scorer: str) -> None:
        """`generate` takes a conversation's later turn either way; the prompt, and so the query, is the same."""
        first, more = _batch(model, 20), tiny.inputs(NAME, model, [[16]], seed=5)
        whole = torch.cat((first["input_ids"], more["input_ids"]), 1)
        found = []
        for ids in (whole, more["input_ids"]):
            with torch.no_grad(), warnings.catch_warnings(), _pruner(scorer=scorer)(model) as report:
                warnings.simplefilter("ignore")
                cache = model(**first, use_cache=True).past_key_values
                turn = {**more, "input_ids": ids, "attention_mask": torch.ones_like(whole)}
                model.generate(**turn, past_key_values=cache, max_new_tokens=2, do_sample=False)
            found.append(report.samples[1])
        assert torch.equal(found[0].importance, found[1].importance)
        assert torch.equal(found[0].kept, found[1].kept)

    def step(self, model: Any, cache: Any, mask: Tensor, tokens: int = 1) -> Tensor:
        ids = torch.full((len(mask), tokens), 33)
        longer = torch.cat((mask, torch.ones_like(ids)), 1)
        logits: Tensor = model(input_ids=ids, attention_mask=longer, past_key_values=cache).logits
        return logits[:, -1]

    @pytest.mark.parametrize("order", [[1, 0], [1, 1], [0, 0, 1, 1], [1]])
    @pytest.mark.parametrize("copied", [False, True])
    def test_samples_chosen_anew(self, model: Any, order: list[int], copied: bool) -> None:
        batch = _batch(model, 20, 7)
        index = torch.tensor(order)
        with torch.no_grad(), _pruner()(model):
            cache = model(**batch, use_cache=True).past_key_values
            expected = self.step(model, cache, batch["attention_mask"])[index]
            cache = model(**batch, use_cache=True).past_key_values
            cache = copy.deepcopy(cache) if copied else cache
            if len(order) == 2:
                cache.reorder_cache(index)
            else:
                cache.batch_select_indices(index)
            again = self.step(model, cache, batch["attention_mask"][index])
        assert (again - expected).abs().max() <= MAX_ERROR

    def test_samples_repeated(self, model: Any) -> None:
        batch = _batch(model, 20, 7)
        with torch.no_grad(), _pruner()(model):
            expected = self.step(model, model(**batch, use_cache=True).past_key_values, batch["attention_mask"])
            cache = model(**batch, use_cache=True).past_key_values
            cache.batch_repeat_interleave(2)
            again = self.step(model, cache, batch["attention_mask"].repeat_interleave(2, 0))
        assert (again - expected.repeat_interleave(2, 0)).abs().max() <= MAX_ERROR

    @pytest.mark.parametrize("static", [False, True])
    def test_cropped_behind_the_audio(self, model: Any, static: bool) -> None:
        from transformers import DynamicCache, StaticCache

        batch = _batch(model, 20, text_after=6)
        cache = StaticCache(model.config.text_config, max_cache_len=64) if static else DynamicCache()
        with torch.no_grad(), _pruner()(model) as report:
            model(**batch, past_key_values=cache)
            cache.crop(-3)
            mask = batch["attention_mask"][:, :-3]
            logits = self.step(model, cache, mask, tokens=4)
        ids = torch.cat((batch["input_ids"][:, :-3], torch.full((1, 4), 33)), 1)
        report.prefills = report.prefills[:1]
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        audio = tiny.audio_mask(NAME, model, ids)
        with torch.no_grad(), masked_from(find_lalm(model).layers, 2, dropped_from(report, audio)):
            expected = model(**{**batch, **longer}, use_cache=False).logits[:, -1]
        assert (logits - expected).abs().max() <= MAX_ERROR

    @pytest.mark.parametrize("static", [False, True])
    def test_cropped_into_the_audio(self, model: Any, static: bool) -> None:
        from transformers import DynamicCache, StaticCache

        batch = _batch(model, 20, text_after=6)
        cache = StaticCache(model.config.text_config, max_cache_len=64) if static else DynamicCache()
        with torch.no_grad(), _pruner()(model):
            model(**batch, past_key_values=cache)
            cache.crop(-16)
            with pytest.raises(HeadRouterError, match="cropped"):
                self.step(model, cache, batch["attention_mask"][:, :-16], tokens=20)

    def test_static_cache_reset_and_filled_without_audio(self, model: Any) -> None:
        from transformers import StaticCache

        batch = _batch(model, 20)
        text = {"input_ids": torch.randint(8, 90, (1, 9), generator=torch.Generator().manual_seed(0))}
        cache = StaticCache(model.config.text_config, max_cache_len=64)
        with torch.no_grad():
            expected = model(**text, use_cache=False).logits
            with _pruner()(model):
                model(**batch, past_key_values=cache)
                cache.reset()
                logits = model(**text, past_key_values=cache).logits
                step = model(input_ids=torch.tensor([[33]]), past_key_values=cache).logits
        longer = torch.cat((text["input_ids"], torch.tensor([[33]])), 1)
        with torch.no_grad():
            expected_step = model(input_ids=longer, use_cache=False).logits[:, -1:]
        assert (logits - expected).abs().max() <= MAX_ERROR
        assert (step - expected_step).abs().max() <= MAX_ERROR

    def test_one_token_on_a_static_cache_that_was_reset(self, model: Any) -> None:
        from transformers import StaticCache

        cache = StaticCache(model.config.text_config, max_cache_len=64)
        token = torch.tensor([[33]])
        with torch.no_grad():
            expected = model(input_ids=token, use_cache=False).logits
            with _pruner()(model):
                model(**_batch(model, 20), past_key_values=cache)
                cache.reset()
                logits = model(input_ids=token, past_key_values=cache).logits
        assert (logits - expected).abs().max() <= MAX_ERROR

    def test_going_on_without_the_pruner_or_with_another_layer_is_refused(self, model: Any) -> None:
        batch = _batch(model, 20, 7)
        with torch.no_grad():
            with _pruner()(model):
                cache = model(**batch, use_cache=True).past_key_values
            with pytest.raises(HeadRouterError, match="inside the same"):
                self.step(model, cache, batch["attention_mask"])
            with _pruner()(model):
                cache = model(**batch, use_cache=True).past_key_values
            for layer in (1, 3):
                with _pruner(layer=layer)(model), pytest.raises(HeadRouterError, match="layer=2"):
                    self.step(model, cache, batch["attention_mask"])
                with _pruner()(model):
                    cache = model(**batch, use_cache=True).past_key_values

    def test_a_cache_is_freed_at_once_and_copied_as_what_it_was(self, model: Any) -> None:
        from transformers import DynamicCache

        with torch.no_grad(), _pruner()(model):
            cache = model(**_batch(model, 20, 7), use_cache=True).past_key_values
        assert isinstance(cache, DynamicCache)
        for again in (copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))):
            assert type(again) is type(cache)
            assert torch.equal(again.layers[3].keys, cache.layers[3].keys)
        alive = weakref.ref(cache.layers[3])
        gc.disable()
        try:
            del cache
            assert alive() is None
        finally:
            gc.enable()


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers' compiled masks need torch.compiler.is_exporting"
)
class TestCompiled:
    """Compiled code does not see hooks that came after it, so it runs uncompiled while a pruner is attached."""

    @pytest.mark.parametrize("how", ["function", "method", "layers", "forward"])
    def test_compiled_before_attaching(self, how: str) -> None:
        model = tiny.build(NAME)
        batch = _batch(model, 20, 7)
        with torch.no_grad():
            with _pruner()(model):
                expected = model(**batch).logits
            runner: Any = model
            if how == "function":
                runner = torch.compile(model, backend="eager")
            elif how == "method":
                model.compile(backend="eager")
            elif how == "forward":
                model.forward = torch.compile(model.forward, backend="eager")
            else:
                layers = find_lalm(model).layers
                for index, layer in enumerate(layers):
                    layers[index] = torch.compile(layer, backend="eager")
            full = runner(**batch).logits
            with _pruner()(runner) as report:
                pruned = runner(**batch).logits
            after = runner(**batch).logits
        assert len(report.prefills) == 1
        assert (pruned - expected).abs().max() <= MAX_ERROR
        assert (full - expected).abs().max() >= 1e-3
        assert torch.equal(after, full)

    def test_the_compiler_is_left_as_it_was(self, model: Any) -> None:
        calls = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(graph)
            return graph.forward

        compiled = torch.compile(nn.Linear(2, 2), backend=backend)
        with _pruner()(model):
            compiled(torch.ones(1, 2))
            assert not calls
        compiled(torch.ones(1, 2))
        assert calls

    def test_two_pruners_that_do_not_nest(self, model: Any) -> None:
        other = tiny.build(NAME, seed=1)
        compiled, batch = torch.compile(other, backend="eager"), _batch(model, 20, 7)
        with torch.no_grad():
            compiled(**batch)
            first, second = _pruner()(model), _pruner()(compiled)
            first.__enter__()
            report = second.__enter__()
            first.__exit__(None, None, None)
            compiled(**batch)
            second.__exit__(None, None, None)
        assert len(report.prefills) == 1
        self.test_the_compiler_is_left_as_it_was(model)


def test_masks_that_differ_between_layers(model: Any) -> None:
    """Made on the fly and gone after their layer: the next may have the same address."""
    batch = _batch(model, 20, 7)
    length = batch["input_ids"].shape[1]

    def narrow(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        window = 6 + 4 * module.self_attn.layer_idx
        near = torch.ones(length, length, dtype=torch.bool).triu(-window)
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] & near}

    layers = find_lalm(model).layers
    hooks = [layer.register_forward_pre_hook(narrow, with_kwargs=True) for layer in layers]
    with torch.no_grad(), _pruner()(model) as report:
        logits = model(**batch).logits
    expected = _reference(model, batch, report).logits
    for hook in hooks:
        hook.remove()
    dropped = dropped_from(report, tiny.audio_mask(NAME, model, batch["input_ids"]))
    kept = batch["attention_mask"].bool() & ~dropped
    assert (logits - expected)[kept].abs().max() <= MAX_ERROR


def test_scores_that_are_not_numbers(model: Any) -> None:
    """They keep nothing they should not, and never cost the token that generation starts from."""
    from headrouter_pl.scorers import Scorer, ScoringInputs

    class Half(Scorer):
        def score(self, inputs: ScoringInputs) -> Tensor:
            scores = torch.arange(inputs.audio_mask.shape[1]).expand(inputs.audio_mask.shape).double()
            return scores.masked_fill(scores % 2 == 1, torch.nan)

    batch = _batch(model, 20, text_after=0)
    first = int(tiny.audio_mask(NAME, model, batch["input_ids"])[0].nonzero()[0])
    with torch.no_grad(), _pruner(scorer=Half(), keep_tokens=4, keep_ratio=None)(model) as report:
        model(**batch)
    assert (report.samples[0].kept - first).tolist() == [14, 16, 18, 19]


def test_labels_that_do_not_spare_the_audio(model: Any) -> None:
    batch = _batch(model, 20, 7)
    with torch.no_grad(), _pruner()(model) as report:
        model(**batch, labels=batch["input_ids"])
    assert [len(sample.kept) for sample in report.samples] == [8, 3]


def test_adapters_merged_under_the_pruner(model: Any) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny.build(NAME), peft.LoraConfig(target_modules=["q_proj", "k_proj"]))
    with torch.no_grad(), _pruner(scorer="fastv")(adapted):
        merged = adapted.merge_and_unload()
        with pytest.raises(HeadRouterError, match="Leave the pruner first"):
            merged(**_batch(model, 20))


@pytest.mark.parametrize("configured", [False, True])
def test_router_logits_are_refused(configured: bool) -> None:
    model = tiny.build("qwen3_omni_moe_thinker")
    batch = tiny.inputs("qwen3_omni_moe_thinker", model, [[20]])
    model.config.get_text_config().output_router_logits = configured
    with torch.no_grad(), _pruner()(model), pytest.raises(HeadRouterError, match="output_router_logits"):
        model(**batch, **({} if configured else {"output_router_logits": True}))
    if configured:
        with torch.no_grad(), _pruner()(model):
            model(**batch, output_router_logits=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_samples_under_a_block_mask_are_refused(model: Any, side: str) -> None:
    batch = tiny.inputs(NAME, model, [[20], [7]], padding_side=side)
    length, valid = batch["input_ids"].shape[1], batch["attention_mask"].bool()
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    alone = (causal & valid[:, None] & valid[:, :, None])[:, None]
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    packed, block = positions.clone(), alone.clone()
    packed[:, -3:] -= 3
    block[:, :, -3:, : length - 3] = False
    with torch.no_grad(), _pruner()(model) as report:
        model(**{**batch, "attention_mask": alone, "position_ids": positions})
        assert [len(sample.kept) for sample in report.samples] == [8, 3]
        if side == "left":  # else the shorter row's last positions are padding
            with pytest.raises(HeadRouterError, match="packed samples"):
                model(**{**batch, "attention_mask": block, "position_ids": packed})


def test_a_generate_that_was_replaced_is_called_and_put_back(model: Any) -> None:
    """As FSDP2 does, to gather weights around it."""
    calls, stock = [], model.generate

    def gathering(**inputs: Any) -> Any:
        calls.append(len(inputs))
        return stock(**inputs)

    batch = _batch(model, 20)
    model.generate = gathering
    try:
        with torch.no_grad(), _pruner(scorer="fastv")(model) as report:
            found = model.generate(**batch, max_new_tokens=4, do_sample=False)
            with pytest.raises(HeadRouterError, match=r"A pruner is attached .* already"), _pruner()(model):
                pass
        assert calls == [len(batch) + 2]
        assert len(report.prefills) == 1
        assert model.generate is gathering
    finally:
        del model.generate
    with torch.no_grad(), _pruner(scorer="fastv")(model):
        assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), found)
    assert not [name for name in vars(model) if "generate" in name]


def test_a_scorer_that_fails_or_gives_the_wrong_shape(model: Any) -> None:
    from headrouter_pl.scorers import Scorer, ScoringInputs

    class Wrong(Scorer):
        def score(self, inputs: ScoringInputs) -> Tensor:
            return torch.zeros(3, 5)

    batch = _batch(model, 20, 7)
    with torch.no_grad(), _pruner(scorer=Wrong())(model), pytest.raises(HeadRouterError, match=r"Wrong.*\[2, 20\]"):
        model(**batch)
