"""Models of named shapes with random weights, and inputs of any length, for measurements of speed and memory.

Nothing is downloaded. How long a pass takes does not depend on what the weights hold, so that a random model of a shape
stands for the trained one; what it answers means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrouter_pl.errors import ConfigurationError, unknown_name

__all__ = ["SHAPES", "Shape", "get_shape"]

WINDOW_SECONDS = 30
MEL_FRAMES = 100
"""Mel frames a second."""
TEXT_IDS = (1_000, 30_000)
"""Text is made of ids in this range, which are words in all vocabularies here."""
_SPREAD = 0.02 * 3**0.5  # a standard deviation of .02, as the models' own initialisation has it


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model.

    Attributes:
        model_class: Its class in transformers.
        config_class: The class of its configuration, likewise.
        text: Sizes of the decoder.
        audio: Sizes of the audio encoder.
        config: The rest of the configuration: ids of special tokens, other towers.
        encoder_layers: What the encoder's configuration calls its number of layers.
        tokens_per_second: Audio tokens a second.
        windows: Whether long audio goes through the encoder in windows of 30 s, and not as one sequence.
        mask: Name of the mask of the mel frames; None where every window counts as full.
    """

    model_class: str
    config_class: str
    text: Mapping[str, Any]
    audio: Mapping[str, Any]
    config: Mapping[str, Any]
    encoder_layers: str = "num_hidden_layers"
    tokens_per_second: float = 25.0
    windows: bool = True
    mask: str | None = "input_features_mask"

    def build(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        num_layers: int | None = None,
        encoder_layers: int | None = None,
        seed: int = 0,
    ) -> Any:
        """A model with random weights, made on its device.

        Args:
            device: Where to make it; ``"meta"`` for sizes alone, without weights.
            dtype: Of the weights.
            attn_implementation: As in ``from_pretrained``.
            num_layers: Decoder layers, to run a slice of a model that does not fit; all if None.
            encoder_layers: Layers of the audio encoder, likewise.
            seed: Of the weights.

        Returns:
            The model, in evaluation mode.

        Raises:
            ConfigurationError: If there are to be no layers, or more than the shape has.
        """
        import transformers
        from transformers.initialization import no_init_weights

        text, audio = dict(self.text), dict(self.audio)
        text["num_hidden_layers"] = _part("num_layers", num_layers, text["num_hidden_layers"])
        audio[self.encoder_layers] = _part("encoder_layers", encoder_layers, audio[self.encoder_layers])
        config = getattr(transformers, self.config_class)(text_config=text, audio_config=audio, **self.config)
        # Not by the models' own initialisation, which on a CPU takes minutes for a large vocabulary.
        with no_init_weights(), torch.device(device):
            model = getattr(transformers, self.model_class)._from_config(
                config, dtype=dtype, attn_implementation=attn_implementation
            )
        if torch.device(device).type != "meta":
            _fill(model, torch.Generator(device).manual_seed(seed))
        return model.eval()

    def inputs(
        self, model: Any, seconds: float, *, batch: int = 1, before: int = 16, after: int = 24, seed: int = 0
    ) -> dict[str, Tensor]:
        """What the model's forward takes: random mel features among random text, without padding.

        Args:
            model: The model, for its device, dtype and the id of its placeholder.
            seconds: Of audio in each sample. A shape whose windows are always full rounds up to the next 30 s.
            batch: Samples B, of one length.
            before: Text tokens before the audio.
            after: Text tokens after the audio: the question.
            seed: Of features and text.

        Returns:
            ``input_ids`` ``[B, L]``, ``input_features`` ``[B * windows, mels, frames]`` and their mask, if any. No
            attention mask: the samples have one length.
        """
        frames = round(seconds * MEL_FRAMES)
        if frames < 4:
            raise ConfigurationError(f"Audio must have at least {4 / MEL_FRAMES} s, got {seconds}.")
        window = WINDOW_SECONDS * MEL_FRAMES if self.windows else frames
        lengths = [min(window, frames - start) for start in range(0, frames, window)]
        if self.mask is None:
            lengths = [window] * len(lengths)
        audio_tokens = sum(self._tokens(length) for length in lengths)
        gen = torch.Generator().manual_seed(seed)
        mels = self.audio["num_mel_bins"]
        mask = (torch.arange(window) < torch.tensor(lengths * batch)[:, None]).long()
        features = torch.randn(len(mask), mels, window, generator=gen) * mask[:, None]
        text = torch.randint(*TEXT_IDS, (batch, before + after), generator=gen)
        audio = torch.full((batch, audio_tokens), self._placeholder(model.config))
        ids = torch.cat((text[:, :before], audio, text[:, before:]), 1)
        device, dtype = model.device, model.dtype
        given = {"input_ids": ids.to(device), "input_features": features.to(device, dtype)}
        return given if self.mask is None else given | {self.mask: mask.to(device)}

    def _tokens(self, frames: int) -> int:
        """Audio tokens of one pass through the encoder."""
        if self.mask is None:
            return round(frames / MEL_FRAMES * self.tokens_per_second)
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1  # Whisper's convolution, then a pooling in pairs

    @staticmethod
    def _placeholder(config: Any) -> int:
        found = getattr(config, "audio_token_id", None)
        return int(config.audio_token_index if found is None else found)


def get_shape(name: str) -> Shape:
    """The shape of a name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in SHAPES:
        raise unknown_name("shape", name, SHAPES)
    return SHAPES[name]


@torch.no_grad()
def _fill(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.uniform_(-_SPREAD, _SPREAD, generator=generator)
        else:  # norms and biases
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _part(name: str, wanted: int | None, whole: int) -> int:
    if wanted is not None and not 1 <= wanted <= whole:
        raise ConfigurationError(f"{name} must be in 1..{whole}, got {wanted}.")
    return whole if wanted is None else wanted


def _decoder(
    model_type: str, width: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, theta: float,
    **extra: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        **extra,
    }


def _whisper(mels: int, width: int, layers: int, heads: int, **extra: Any) -> dict[str, Any]:
    return {
        "num_mel_bins": mels,
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        **extra,
    }


def _encoder(model_type: str, mels: int, width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_mel_bins": mels,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _omni(width: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int) -> Shape:
    sections = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _decoder("qwen2_5_omni_text", width, inner, layers, heads, keys, vocabulary, 1e6)
    return Shape(
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen2_5OmniThinkerConfig",
        text | {"rope_parameters": sections},
        _whisper(128, 1280, 32, 20, n_window=100, output_dim=width),
        # No image goes through the vision tower, of which a stub is left.
        {
            "audio_token_index": 151646,
            "vision_config": {
                "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width,
                "fullatt_block_indexes": [0],
            },
        },
        encoder_layers="encoder_layers",
        windows=False,
        mask="feature_attention_mask",
    )  # fmt: skip


_FLAMINGO = ("AudioFlamingo3ForConditionalGeneration", "AudioFlamingo3Config")

SHAPES: dict[str, Shape] = {
    # Whisper-base and SmolLM2-135M, as headrouter_pl.models.pocket joins them.
    "pocket": Shape(
        *_FLAMINGO,
        _decoder("llama", 576, 1536, 30, 9, 3, 49_152, 1e5, head_dim=64),
        _encoder("audioflamingo3_encoder", 80, 512, 6, 8),
        {"audio_token_id": 16},
    ),
    "qwen2_5_omni_3b": _omni(2048, 11_008, 36, 16, 2, 151_936),
    "qwen2_5_omni_7b": _omni(3584, 18_944, 28, 28, 4, 152_064),
    "qwen2_audio_7b": Shape(
        "Qwen2AudioForConditionalGeneration",
        "Qwen2AudioConfig",
        _decoder("qwen2", 4096, 11_008, 32, 32, 32, 156_032, 1e4),
        _whisper(128, 1280, 32, 20),
        {"audio_token_index": 151_646},
        encoder_layers="encoder_layers",
        mask="feature_attention_mask",
    ),
    "voxtral_3b": Shape(
        "VoxtralForConditionalGeneration",
        "VoxtralConfig",
        _decoder("llama", 3072, 8192, 30, 32, 8, 131_072, 1e8, head_dim=128),
        _encoder("voxtral_encoder", 128, 1280, 32, 20),
        {"audio_token_id": 24},
        tokens_per_second=12.5,
        mask=None,
    ),
    "audio_flamingo_3": Shape(
        *_FLAMINGO,
        _decoder("qwen2", 3584, 18_944, 28, 28, 4, 151_672, 1e6),
        _encoder("audioflamingo3_encoder", 128, 1280, 32, 20),
        {"audio_token_id": 151_669},
    ),
}
"""Sizes as the published checkpoints' configurations give them."""
