"""What must be known of each audio language model family: one record each.

To support another family, add a record to :data:`FAMILIES` and a tiny random model of it to the exactness tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from headrouter_pl.errors import UnsupportedModelError


@dataclass(frozen=True)
class ModelFamily:
    """Where a family of models keeps what pruning needs.

    Attributes:
        model_type: ``config.model_type`` of the module that takes ``input_ids`` and audio together.
        decoder: Dotted path from that module to the one that holds the decoder's ``layers``.
        audio_token: Dotted path in the config to the id of the audio placeholder.
    """

    model_type: str
    decoder: str = "model.language_model"
    audio_token: str = "audio_token_id"


FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ModelFamily("audioflamingo3"),
        ModelFamily("fun_asr_nano"),
        ModelFamily("gemma3n"),
        ModelFamily("glmasr"),
        ModelFamily("granite_speech"),
        ModelFamily("granite_speech_plus"),
        ModelFamily("moss_transcribe_diarize"),
        ModelFamily("musicflamingo"),
        ModelFamily("phi4_multimodal", decoder="model", audio_token="audio_config.audio_token_id"),
        ModelFamily("qwen2_5_omni_thinker"),
        ModelFamily("qwen2_audio"),
        ModelFamily("qwen3_asr"),
        ModelFamily("qwen3_omni_moe_thinker"),
        ModelFamily("vibevoice_asr"),
        ModelFamily("voxtral"),
    )
}

# Why a known audio model is refused. All others are refused for being unknown.
REFUSED: dict[str, str] = {
    "csm": "it generates audio codes and has no audio placeholder tokens in a text prompt",
    "inkling": "its convolution layers mix neighbouring tokens, so dropping a token is not the same as masking it",
    "inkling2": "its convolution layers mix neighbouring tokens, so dropping a token is not the same as masking it",
    "kyutai_speech_to_text": "audio and text share each position, so there are no audio tokens to drop",
    "moshi": "audio and text share each position, so there are no audio tokens to drop",
    "nemotron_h": "its state-space layers carry every token on, so dropping a token is not the same as masking it",
    "nemotron_h_omni": "its state-space layers carry every token on, so dropping a token is not the same as masking it",
    "voxtral_realtime": "audio and text share each position, so there are no audio tokens to drop",
}


Receiver = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class LalmHandle:
    """A supported model, resolved: the modules that pruning hooks and the sizes that it needs.

    Attributes:
        model: The module that takes ``input_ids`` and audio.
        family: Its record.
        inputs: Modules whose forward takes ``input_ids``, outermost first.
        layers: The decoder's layers.
        audio_token_id: Placeholder id of an audio token, or None where the config does not say.
    """

    model: nn.Module
    family: ModelFamily
    inputs: tuple[nn.Module, ...]
    layers: nn.ModuleList
    audio_token_id: int | None

    def attention(self, layer: int) -> Any:
        """The self-attention module of a decoder layer."""
        return self.layers[layer].self_attn

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    def head_dim(self, layer: int = 0) -> int:
        """Width of one head."""
        return int(self.attention(layer).head_dim)

    def num_heads(self, layer: int = 0) -> tuple[int, int]:
        """Numbers of query heads and of key heads of a layer.

        Read from the module: the config's numbers do not hold for every layer of every family.
        """
        attention = self.attention(layer)
        dim = self.head_dim(layer)
        if hasattr(attention, "qkv_proj"):
            total = int(attention.qkv_proj.out_features) // dim
            queries = int(attention.o_proj.in_features) // dim
            return queries, (total - queries) // 2
        queries = int(attention.q_proj.out_features) // dim
        return queries, queries // int(attention.num_key_value_groups)

    def is_sliding(self, layer: int) -> bool:
        """Whether the layer attends within a sliding window only."""
        attention = self.attention(layer)
        sliding = getattr(attention, "is_sliding", None)
        return bool(sliding) if sliding is not None else getattr(attention, "sliding_window", None) is not None

    @property
    def lowest_layer(self) -> int:
        """The lowest prune layer: the first layer of each kind sizes the masks of all, so it must lie below."""
        first: dict[bool, int] = {}
        for layer in range(self.num_layers):
            first.setdefault(self.is_sliding(layer), layer)
        return max(first.values()) + 1

    @property
    def highest_layer(self) -> int:
        """The highest prune layer: one that later layers take their keys from must not lie below it."""
        donors = [i for i in range(self.num_layers) if getattr(self.attention(i), "store_full_length_kv", False)]
        return min(donors, default=self.num_layers - 1)

    def shares_keys(self, layer: int) -> bool:
        """Whether the layer reads the keys and values of an earlier layer instead of its own."""
        return bool(getattr(self.attention(layer), "is_kv_shared_layer", False))

    def read_query_key(self, layer: int, query: Receiver, key: Receiver) -> list[RemovableHandle]:
        """Hooks the modules after which queries and keys are complete but not yet rotated.

        Args:
            layer: Index of the decoder layer.
            query: Called with the layer's index and its queries, float ``[B, L, H, d]``.
            key: Called with the layer's index and its keys, float ``[B, L, Hkv, d]``.

        Returns:
            The hook handles.
        """
        attention = self.attention(layer)
        dim, (queries, keys) = self.head_dim(layer), self.num_heads(layer)
        if hasattr(attention, "qkv_proj"):
            parts = ("qkv_proj", slice(0, queries)), ("qkv_proj", slice(queries, queries + keys))
        elif hasattr(attention, "q_norm"):
            parts = ("q_norm", slice(None)), ("k_norm", slice(None))
        else:
            parts = ("q_proj", slice(None)), ("k_proj", slice(None))
        return [
            getattr(attention, name).register_forward_hook(_HeadsHook(receive, layer, dim, heads))
            for receive, (name, heads) in zip((query, key), parts, strict=True)
        ]


class _HeadsHook:
    """Hands on a projection's output by heads. An object, not a closure: deepcopy must copy what it is bound to."""

    def __init__(self, receive: Receiver, layer: int, dim: int, heads: slice) -> None:
        self.receive = receive
        self.layer = layer
        self.dim = dim
        self.heads = heads

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        # Norms give [B, L, heads, d] already, projections [B, L, heads * d].
        states = output if output.dim() == 4 else output.unflatten(-1, (-1, self.dim))
        self.receive(self.layer, states[:, :, self.heads])


def find_lalm(module: nn.Module) -> LalmHandle:
    """Finds the supported audio language model inside a module.

    The model may be the module itself or lie anywhere below it: an attribute of a LightningModule, wrapped by peft,
    by ``torch.compile`` or by a strategy.

    Args:
        module: Any module.

    Returns:
        The handle of the one supported model in it.

    Raises:
        UnsupportedModelError: If there is none, or more than one.
    """
    # By identity: a LightningModule may hold the same model under two names.
    found = list({id(model): (name, model) for name, model in _outermost(module)}.values())
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} holds {len(found)} audio language models "
            f"({', '.join(name or 'itself' for name, _ in found)}); give the one to prune by itself."
        )
    if not found:
        raise UnsupportedModelError(_why_not(module))
    model: Any = found[0][1]
    family = FAMILIES[model.config.model_type]
    path = family.decoder.split(".")
    above = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]
    decoder = above[-1]
    # The decoder itself takes input_ids too, but only in families that embed audio there may they hold placeholders.
    inputs = above if hasattr(decoder, "embed_tokens_extend") else above[:-1]
    return LalmHandle(model, family, tuple(inputs), decoder.layers, _audio_token_id(model.config, family))


def _outermost(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Supported models below a module that are not part of another supported model."""
    family = FAMILIES.get(_model_type(module))
    if family is not None and _has_layers(module, family):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{prefix}.{name}" if prefix else name)


def _model_type(module: nn.Module) -> str:
    # A PeftModel forwards `config` to the model it wraps, so the path is checked as well (_has_layers).
    return str(getattr(getattr(module, "config", None), "model_type", ""))


def _has_layers(module: nn.Module, family: ModelFamily) -> bool:
    try:
        return isinstance(module.get_submodule(family.decoder).layers, nn.ModuleList)
    except AttributeError:
        return False


def _audio_token_id(config: Any, family: ModelFamily) -> int | None:
    for name in family.audio_token.split("."):
        config = getattr(config, name, None)
    return None if config is None else int(config)


def _why_not(module: nn.Module) -> str:
    supported = f"Supported model types: {', '.join(sorted(FAMILIES))}."
    types = {_model_type(part): type(part).__name__ for part in reversed(list(module.modules())) if _model_type(part)}
    for model_type, name in types.items():
        if model_type in REFUSED:
            return f"{name} (model_type {model_type!r}) cannot be pruned: {REFUSED[model_type]}. {supported}"
    if not types:
        return f"{type(module).__name__} holds no Hugging Face model. {supported}"
    listed = ", ".join(f"{name} (model_type {model_type!r})" for model_type, name in types.items())
    return f"No supported audio language model in {type(module).__name__}; it holds {listed}. {supported}"
