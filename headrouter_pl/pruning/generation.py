"""How long the prompt of ``generate`` is, which no forward can tell from drafts and earlier answers."""

from __future__ import annotations

import types
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from headrouter_pl.errors import HeadRouterError

PROMPT_LENGTH: ContextVar[int | None] = ContextVar("headrouter_prompt_length", default=None)
"""Tokens of the prompts that ``generate`` is at work on, padding included; None outside it."""

_REPLACED = "_generate_before_pruning"
"""Attribute of a model whose ``generate`` other code had replaced before."""


def wrap_generate(model: nn.Module) -> bool:
    """Lets a model's ``generate`` set :data:`PROMPT_LENGTH`.

    Returns:
        Whether it has one, and :func:`unwrap_generate` must be called later.

    Raises:
        HeadRouterError: If it is wrapped already.
    """
    if not hasattr(type(model), "generate"):
        return False
    if (found := model.__dict__.get("generate")) is not None:
        if getattr(found, "__func__", None) is _generate:
            raise HeadRouterError(f"A pruner is attached to this {type(model).__name__} already. Leave it first.")
        model.__dict__[_REPLACED] = found  # such as FSDP2's, which gathers the weights
    # A bound method: deepcopy of the model binds it to the copy.
    model.__dict__["generate"] = types.MethodType(_generate, model)
    return True


def unwrap_generate(model: nn.Module) -> None:
    """Gives the model back the ``generate`` that it had."""
    attributes = model.__dict__
    del attributes["generate"]
    if _REPLACED in attributes:
        attributes["generate"] = attributes.pop(_REPLACED)


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for ``model.generate`` while a pruner is attached, to remember the prompt's length."""
    inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if inputs is None:
        inputs = kwargs.get("inputs_embeds")
    length = inputs.shape[1] if isinstance(inputs, Tensor) else None
    if length is not None and isinstance(mask := kwargs.get("attention_mask"), Tensor) and mask.dim() == 2:
        length = max(length, mask.shape[1])  # a later turn may come as new tokens alone, under a mask of all
    token = PROMPT_LENGTH.set(length)
    try:
        replaced = model.__dict__.get(_REPLACED)
        return type(model).generate(model, *args, **kwargs) if replaced is None else replaced(*args, **kwargs)
    finally:
        PROMPT_LENGTH.reset(token)


# Pickled by its name on the model, which then finds the model's own.
_generate.__name__ = "generate"
