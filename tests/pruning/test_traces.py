"""A pruner leaves the model as it was, whatever happens, and bears what is done to a hooked model."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import DynamicCache

from headrouter_pl import AudioTokenPruner, HeadRouterError
from headrouter_pl.pruning import engine
from headrouter_pl.pruning.arguments import bind


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything that a trace could be left in: hooks, instance attributes, the identity of functions and weights."""
    kinds = [name for name in vars(model) if name.endswith("_hooks") or "hooks_" in name]
    return {
        "hooks": [[list(getattr(module, kind).items()) for kind in kinds] for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "forward": [type(module).forward for module in model.modules()],
        "weights": {name: value.data_ptr() for name, value in model.state_dict().items()},
    }


def _pruner(**settings: Any) -> AudioTokenPruner:
    return AudioTokenPruner(**{"keep_ratio": 0.4, "scorer": "fastv", **settings})


def test_nothing_stays(model: Any, batch: dict[str, torch.Tensor]) -> None:
    before = _state(model)
    with torch.no_grad(), _pruner()(model):
        model.generate(**batch, max_new_tokens=2)
        assert _state(model) != before
    assert _state(model) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["body", "layer 0", "layer 1", "layer 3", "generate"])
def test_nothing_stays_after_an_exception(
    model: Any, batch: dict[str, torch.Tensor], where: str, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error("on purpose")

    with torch.no_grad():
        expected = model(**batch).logits
        with _pruner()(model):
            pruned = model(**batch).logits
    hooks = []
    if where.startswith("layer"):
        hooks.append(model.model.language_model.layers[int(where[-1])].register_forward_pre_hook(fail))
    before = _state(model)

    def run() -> None:
        with torch.no_grad(), _pruner()(model):
            if where == "body":
                fail()
            if where == "generate":
                model.generate(**batch, max_new_tokens=3, logits_processor=[fail])
            model(**batch)

    with pytest.raises(error):
        run()
    assert _state(model) == before
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
        with _pruner()(model):
            assert torch.equal(model(**batch).logits, pruned)


def test_an_exception_inside_the_context_does_not_spoil_the_next_forward(
    model: Any, batch: dict[str, torch.Tensor]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad(), _pruner()(model) as report:
        expected = model(**batch).logits
        hook = model.model.language_model.layers[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(**batch)
        hook.remove()
        assert torch.equal(model(**batch).logits, expected)
    assert len(report.prefills) == 2


def test_a_setting_that_does_not_fit_leaves_the_model_alone(model: Any) -> None:
    before = _state(model)
    with pytest.raises(HeadRouterError, match=r"1\.\.3"), _pruner(layer=9)(model):
        pass
    assert _state(model) == before


def test_two_pruners_on_one_model_are_refused(model: Any, batch: dict[str, torch.Tensor]) -> None:
    before = _state(model)
    with _pruner()(model):
        within = _state(model)
        with pytest.raises(HeadRouterError, match="A pruner is attached"), _pruner()(model):
            pass
        assert _state(model) == within
    assert _state(model) == before


def test_deepcopy_of_a_hooked_model(batch: dict[str, torch.Tensor]) -> None:
    model = tiny.build("audioflamingo3")
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), _pruner()(model) as report:
        twin = copy.deepcopy(model)
        expected = model(**batch).logits, model.generate(**batch, **settings)
        seen = len(report.prefills)
        nn.init.zeros_(model.lm_head.weight)
        assert torch.equal(twin(**batch).logits, expected[0])
        assert torch.equal(twin.generate(**batch, **settings), expected[1])
        assert len(report.prefills) == seen
    assert twin.generate.__self__ is twin


@pytest.mark.parametrize(("attention", "work"), [("sdpa", 1), ("eager", 3)])
def test_a_step_of_decoding_works_at_no_more_layers_than_it_must(
    monkeypatch: pytest.MonkeyPatch, attention: str, work: int
) -> None:
    """At layer K the keys are counted; after it only masks are cut, where there are any."""
    model = tiny.build("audioflamingo3", num_layers=4, attn_implementation=attention)
    batch = tiny.inputs("audioflamingo3", model, [[20]])
    del batch["attention_mask"]
    cache = DynamicCache()
    bound: list[str] = []

    def count(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        bound.extend(["layer"] * ("hidden_states" in names))
        return bind(names, args, kwargs)

    monkeypatch.setattr(engine, "bind", count)
    with torch.no_grad(), _pruner(layer=1)(model):
        token = model(**batch, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        assert len(bound) >= 3
        bound.clear()
        model(input_ids=token, past_key_values=cache, use_cache=True)
    assert len(bound) == work


def test_the_model_can_be_freed() -> None:
    model = tiny.build("audioflamingo3")
    batch = tiny.inputs("audioflamingo3", model, [[20]])
    alive = weakref.ref(model)
    with torch.no_grad(), _pruner()(model) as report:
        model(**batch)
    del model
    gc.collect()
    assert alive() is None
    assert len(report.samples[0].kept) == 8


def test_two_threads_on_one_model(model: Any) -> None:
    batches = [tiny.inputs("audioflamingo3", model, clips, seed=i) for i, clips in enumerate([[[20]], [[13], [31]]])]
    with torch.no_grad(), _pruner()(model):
        expected = [model(**batch).logits for batch in batches]
        wrong: list[str] = []

        def work(index: int) -> None:
            with torch.no_grad():
                for _ in range(20):
                    try:
                        if not torch.equal(model(**batches[index]).logits, expected[index]):
                            wrong.append(f"batch {index} differs")
                    except Exception as error:
                        wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_two_models_at_once(model: Any, batch: dict[str, torch.Tensor]) -> None:
    other = tiny.build("audioflamingo3", seed=1)
    with torch.no_grad():
        with _pruner()(model):
            first = model(**batch).logits
        with _pruner(keep_ratio=0.2)(other):
            second = other(**batch).logits
        with _pruner()(model) as one, _pruner(keep_ratio=0.2)(other) as two:
            assert torch.equal(model(**batch).logits, first)
            assert torch.equal(other(**batch).logits, second)
    assert [len(sample.kept) for sample in one.samples] == [8, 4]
    assert [len(sample.kept) for sample in two.samples] == [4, 2]
