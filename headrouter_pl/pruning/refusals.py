"""What is refused, because dropping a token would not be the same as masking it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from headrouter_pl.errors import AudioMaskError, HeadRouterError, UnsupportedModelError
from headrouter_pl.models import LalmHandle
from headrouter_pl.pruning.arguments import parameter_names
from headrouter_pl.scorers import Scorer


def refuse_layers(handle: LalmHandle, layer: int, probed: Sequence[int]) -> None:
    """Refuses prune layers at which dropping a token is not masking it, and probe layers that the model lacks.

    Args:
        handle: The model.
        layer: The prune layer K.
        probed: The probed layers.
    """
    name = type(handle.model).__name__
    if not 1 <= layer < handle.num_layers:
        raise HeadRouterError(
            f"layer={layer} is out of range: {name} has {handle.num_layers} decoder layers, so K must be in "
            f"1..{handle.num_layers - 1} (layers 0..K-1 see every token)."
        )
    if layer < handle.lowest_layer:
        raise HeadRouterError(
            f"layer={layer} is too low for {name}: its masks are sized by layer {handle.lowest_layer - 1}, the "
            f"first of its kind of attention, which must see every token. Take layer >= {handle.lowest_layer}."
        )
    if layer > handle.highest_layer:
        raise HeadRouterError(
            f"layer={layer} is too high for {name}: later layers reuse the keys of layer {handle.highest_layer}, "
            f"which must not see dropped tokens. Take layer <= {handle.highest_layer}."
        )
    if bad := [i for i in probed if not 0 <= i < handle.num_layers]:
        raise HeadRouterError(f"Probe layers {bad} of {name} must lie among its {handle.num_layers} layers.")
    if len({handle.num_heads(i)[0] for i in probed}) > 1 or len(set(probed)) < len(probed):
        raise HeadRouterError(f"Probe layers {list(probed)} must differ, and have the same number of heads.")


def refuse_late_probe(handle: LalmHandle, layer: int, probed: Sequence[int]) -> None:
    """Refuses to probe the model's own pass at layers where tokens have been dropped already.

    Args:
        handle: The model.
        layer: The prune layer K.
        probed: The probed layers.
    """
    if late := [index for index in probed if index >= layer]:
        raise HeadRouterError(
            f"Probe layers {late} of {type(handle.model).__name__} must lie below the prune layer {layer}: take layer "
            f">= {max(late) + 1}, or other probe layers."
        )


def refuse_scout(handle: LalmHandle, scorer: Scorer, probed: Sequence[int]) -> None:
    """Refuses scout passes that would not be what the model makes of the averaged audio.

    Args:
        handle: The model.
        scorer: Whose probe has a ``pool``.
        probed: The probed layers.
    """
    name = type(handle.model).__name__
    assert scorer.probe is not None
    pool = scorer.probe.pool
    if not isinstance(pool, int) or pool < 1:
        raise HeadRouterError(f"A probe's pool must be a number of tokens, at least 1, got {pool}.")
    if any(kind.__name__ == "FSDPModule" for kind in type(handle.layers[0]).__mro__):
        raise UnsupportedModelError(
            f"{name} is sharded by FSDP2, which gathers a layer's weights by hooks that a scout pass does not run. "
            "Take a scorer without a scout pass, such as 'headrouter', or another strategy."
        )
    if scorer.reads_keys:
        raise HeadRouterError(
            f"{type(scorer).__name__} reads keys of tokens, and probes a scout pass, which has keys of groups "
            "only. Take a probe without pool."
        )
    if "per_layer_input" in parameter_names(handle.layers[0], "hidden_states"):
        raise UnsupportedModelError(
            f"{name} cannot make a scout pass: its layers are given inputs of their own, looked up token by token, "
            "and several streams of hidden states, whose mean is not what the model makes of averaged audio. Take "
            "a scorer without a scout pass, such as 'headrouter'."
        )
    if len({handle.is_sliding(i) for i in range(max(probed) + 1)}) > 1:
        raise UnsupportedModelError(
            f"{name} cannot make a scout pass: its layers 0..{max(probed)} mix full and sliding-window "
            "attention, whose masks are not known before the model gets there. Take a scorer without a scout pass, "
            "such as 'headrouter'."
        )


def refuse_forward(config: Any, given: Mapping[str, Any], positions: Tensor | None, mask: Tensor | None) -> None:
    """Refuses forwards with audio in which dropping tokens would go wrong.

    Args:
        config: Of the model.
        given: Arguments of the forward.
        positions: Position ids ``[B, L]`` of a forward that is given no mask ``[B, L]``, or None.
        mask: Which positions are not padding, ``[B, L]``, or None.
    """
    router_logits = given.get("output_router_logits")
    if router_logits is None:
        router_logits = getattr(config.get_text_config(), "output_router_logits", False)
    if router_logits:
        raise HeadRouterError(
            "The load-balancing loss of mixture layers expects as many tokens in every layer. Prune without "
            "output_router_logits, as an argument and in the config."
        )
    if given.get("cu_seq_lens_q") is not None or (positions is not None and _starts_anew(positions, mask)):
        raise HeadRouterError(
            "The batch holds packed samples (position_ids start anew within a row), so that it cannot be told "
            "whose question asks of whose audio. Turn packing off, and pad."
        )


def _starts_anew(positions: Tensor, mask: Tensor | None) -> bool:
    """Whether position ids ``[B, L]`` ever fail to rise from one position that is not padding to the next."""
    for row, ids in enumerate(positions):
        shown = ids if mask is None else ids[mask[row if len(mask) > 1 else 0].bool()]
        if bool((shown.diff() <= 0).any()):
            return True
    return False


def refuse_mask(handle: LalmHandle, total: int, index: int, mask: Any) -> None:
    """Refuses attention whose masks cannot be cut to fewer tokens, in a sequence of ``total`` positions."""
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"The layers are given a {type(mask).__name__} as attention mask. Load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'."
        )
    if handle.is_flash(index) and total > (handle.window(index) or total):
        raise UnsupportedModelError(
            "Flash attention counts its sliding window in kept tokens, which is not the same as masking the "
            "dropped ones. Load the model with attn_implementation='sdpa'."
        )


def refuse_hooks_inside_checkpoints(layer: Any) -> None:
    """Refuses gradient checkpointing where the backward pass would run the layer without its hooks' state."""
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return
    if any(kind.__name__ == "GradientCheckpointingLayer" and "__call__" in vars(kind) for kind in type(layer).__mro__):
        raise HeadRouterError(
            "This version of transformers runs module hooks inside gradient checkpoints, so pruned training steps "
            "cannot be recomputed. Upgrade transformers (5.23 works), or train unpruned or without checkpointing."
        )


def refuse_length(handle: LalmHandle, length: int, hidden: Tensor) -> None:
    """Refuses hidden states of another length than the input: the model expands its audio placeholders itself."""
    if hidden.shape[-2] != length:
        raise AudioMaskError(
            f"The decoder of {type(handle.model).__name__} works on {hidden.shape[-2]} positions, input_ids "
            f"has {length}: the model expands its audio placeholders itself. Expand them beforehand, as "
            "its processor does."
        )
