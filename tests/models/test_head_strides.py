"""The output head gets strides of its own, and what it gives stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pocket import build

from headrouter_pl.models.answering import multiplied_in_place

torch.set_num_threads(1)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_what_the_head_gives_stays_as_it_is(keep: int) -> None:
    model: Any = build()
    ids = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    head, seen = model.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.inference_mode():
        plain = model(input_ids=ids, logits_to_keep=keep).logits
        with multiplied_in_place(model):
            own = model(input_ids=ids, logits_to_keep=keep).logits
    hook.remove()
    torch.testing.assert_close(own, plain)
    assert torch.equal(seen[0], seen[1])
    width = seen[1].shape[-1]
    assert seen[1].stride() == (seen[1].shape[1] * width, width, 1)
    assert not head._forward_pre_hooks


def test_the_hook_goes_with_an_error() -> None:
    model: Any = build()
    with pytest.raises(RuntimeError, match="stop"), multiplied_in_place(model):
        raise RuntimeError("stop")
    assert not model.get_output_embeddings()._forward_pre_hooks
