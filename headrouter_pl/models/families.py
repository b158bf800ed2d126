"""What must be known of each audio language model family: one record each.

To support another family, add a record to :data:`FAMILIES` and a tiny random model of it to the exactness tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from headrouter_pl.errors import UnsupportedModelError


@dataclass(frozen=True)
class ModelFamily:
    """Where a family of models keeps what pruning needs.

    Attributes:
        model_type: ``config.model_type`` of the module that takes ``input_ids`` and audio together.
        audio_token: Dotted paths in the config to the id of the audio placeholder; the first that exists counts.
        decoder: Dotted paths from the module to the one that holds the decoder's ``layers``, likewise. They differ
            between versions of transformers.
        window: Seconds that each recording is filled up to a multiple of, with silence that has tokens too.
    """

    model_type: str
    audio_token: tuple[str, ...] = ("audio_token_id", "audio_token_index")
    decoder: tuple[str, ...] = ("model.language_model", "language_model.model", "model")
    window: float | None = None

    def find_decoder(self, model: nn.Module) -> str | None:
        """The path of the decoder in a model, or None where it has none."""
        for path in self.decoder:
            # By children, not by attributes: wrappers such as PeftModel forward those of the model they hold.
            part: nn.Module | None = model
            for name in (*path.split("."), "layers"):
                part = None if part is None else dict(part.named_children()).get(name)
            if isinstance(part, nn.ModuleList):
                return path
        return None

    def find_audio_token(self, config: Any) -> int | None:
        """The id of the audio placeholder, or None where the config does not say."""
        for path in self.audio_token:
            value = config
            for name in path.split("."):
                value = getattr(value, name, None)
            if value is not None:
                return int(value)
        return None


FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ModelFamily("audioflamingo3"),
        ModelFamily("fun_asr_nano"),
        ModelFamily("gemma3n", window=30.0),
        ModelFamily("glmasr"),
        ModelFamily("granite_speech"),
        ModelFamily("granite_speech_plus"),
        ModelFamily("moss_transcribe_diarize"),
        ModelFamily("musicflamingo"),
        ModelFamily("phi4_multimodal", audio_token=("audio_config.audio_token_id",)),
        ModelFamily("qwen2_5_omni_thinker"),
        ModelFamily("qwen2_audio"),
        ModelFamily("qwen3_asr"),
        ModelFamily("qwen3_omni_moe_thinker"),
        ModelFamily("vibevoice_asr"),
        ModelFamily("voxtral", window=30.0),
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
        decoder: The module that holds the decoder's layers.
        audio_token_id: Placeholder id of an audio token, or None where the config does not say.
    """

    model: nn.Module
    family: ModelFamily
    inputs: tuple[nn.Module, ...]
    decoder: nn.Module
    audio_token_id: int | None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return cast(nn.ModuleList, self.decoder.layers)

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

    def is_flash(self, layer: int) -> bool:
        """Whether the layer runs flash attention, which takes masks of keys only."""
        return "flash" in str(getattr(self.attention(layer).config, "_attn_implementation", ""))

    def is_sliding(self, layer: int) -> bool:
        """Whether the layer attends within a sliding window only."""
        return self.window(layer) is not None

    def window(self, layer: int) -> int | None:
        """Width of the layer's sliding window, in tokens; None where it attends to all."""
        attention = self.attention(layer)
        if getattr(attention, "is_sliding", None) is False:
            return None
        # Of Mistral and Phi the config alone says it; where the module says it, what the config says may be unused.
        source = attention if hasattr(attention, "sliding_window") else getattr(attention, "config", None)
        window = getattr(source, "sliding_window", None)
        return None if window is None else int(window)

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

    def hook_query_key(self, layer: int, query: Receiver, key: Receiver) -> list[RemovableHandle]:
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
    path = (family.find_decoder(model) or "").split(".")
    above = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]
    decoder = above[-1]
    # The decoder itself takes input_ids too, but only in families that embed audio there may they hold placeholders.
    inputs = above if hasattr(decoder, "embed_tokens_extend") else above[:-1]
    inputs = [module for module in inputs if "input_ids" in inspect.signature(type(module).forward).parameters]
    return LalmHandle(model, family, tuple(inputs), decoder, family.find_audio_token(model.config))


def _outermost(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Supported models below a module that are not part of another supported model."""
    family = FAMILIES.get(_model_type(module))
    if family is not None and family.find_decoder(module) is not None:
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{prefix}.{name}" if prefix else name)


def _model_type(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "model_type", ""))


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
