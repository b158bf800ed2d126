"""Audio tokens dropped at the input, before the decoder.

Imitates methods that thin out the encoder's tokens without the decoder (as the audio part of OmniZip, arXiv 2511.14582,
or merging of like neighbours): kept are the tokens least like the one before them, by cosine similarity. The question
has no say in it. Tokens keep their places in the rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from headrouter_pl.models import find_lalm
from peers._hooks import count_kept, cut, watch_audio, with_text


@contextmanager
def input_dropping(model: nn.Module, keep_ratio: float, layer: int = 0) -> Iterator[None]:
    """Drops audio from the decoder's input. ``layer`` does not matter to it."""
    handle = find_lalm(model)

    def drop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeds = kwargs["inputs_embeds"]
        if embeds.shape[1] == 1:
            return None
        units = F.normalize(embeds[0, audio[0]].float(), dim=-1)
        unlike = F.pad(-(units[1:] * units[:-1]).sum(-1), (1, 0), value=torch.inf)  # the first has none before it
        chosen = audio[0][unlike.topk(count_kept(audio[0], keep_ratio)).indices]
        kept = with_text(chosen, audio[0], embeds.shape[1])
        places = kwargs.get("position_ids")
        if places is None:
            places = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return args, cut({**kwargs, "position_ids": places}, kept) | {"inputs_embeds": embeds[:, kept]}

    with watch_audio(handle) as audio:
        hook = handle.decoder.register_forward_pre_hook(drop, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
