"""The shapes of published models, made so narrow that their forward takes a moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headrouter_pl.models.shapes import SHAPES, Shape

WIDTH = 48


def narrow(name: str) -> Shape:
    """A shape with its vocabulary, ids, windows and mel bins, and tiny layers in between."""
    shape = SHAPES[name]
    text: dict[str, Any] = {
        **shape.text, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    }  # fmt: skip
    if "mrope_section" in text["rope_parameters"]:
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [2, 2, 2]}
        del text["head_dim"]  # by width and heads, for this family
    audio: dict[str, Any] = dict(shape.audio)
    heads = "num_attention_heads" if "hidden_size" in audio else "encoder_attention_heads"
    inner = "intermediate_size" if "hidden_size" in audio else "encoder_ffn_dim"
    audio |= {"hidden_size" if "hidden_size" in audio else "d_model": WIDTH, heads: 2, inner: WIDTH}
    audio |= {shape.encoder_layers: 1} | ({"output_dim": WIDTH} if "output_dim" in audio else {})
    if name == "voxtral_3b":
        audio[inner] = 4 * WIDTH  # its projector takes four frames of the encoder at once, by this number
    config = dict(shape.config)
    if "vision_config" in config:
        config["vision_config"] = {**config["vision_config"], "out_hidden_size": WIDTH}
    return replace(shape, text=text, audio=audio, config=config)
