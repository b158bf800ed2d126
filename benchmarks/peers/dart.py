"""DART in Python loops (arXiv 2502.11494, github.com/ZichenWen1/DART), one pivot and one list of positions at a time.

Imitates its choice of tokens: the audio and text tokens whose cached keys have the largest L1 norm are pivots; each in
turn takes its share of those left whose hidden states are least like its own. Sets and lists of Python integers, with a
copy from the device for each pivot; the shares are rounded down, so that a few tokens less than asked for are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrouter_pl.models import find_lalm
from headrouter_pl.models.caches import cache_in
from peers._hooks import shorten


@contextmanager
def dart(model: nn.Module, keep_ratio: float, layer: int = 2, pivots: int = 4) -> Iterator[None]:
    """Prunes prefills by duplication, with so many pivots among the audio and as many among the text after it."""
    handle = find_lalm(model)

    def choose(hidden: Tensor, audio: Tensor, kwargs: dict[str, Any]) -> Tensor:
        keys = cache_in(kwargs).layers[layer - 1].keys[0].transpose(0, 1).flatten(1)  # [L, Hkv * d]
        norm = keys.norm(p=1, dim=-1)
        after = int(audio[-1]) + 1
        audio_pivots = audio[norm[audio].topk(min(pivots, len(audio))).indices].tolist()
        text_pivots = (norm[after:].topk(min(pivots, hidden.shape[1] - after)).indices + after).tolist()
        share = int(len(audio) * keep_ratio / (len(audio_pivots) + len(text_pivots)))
        kept = set(audio_pivots)
        left = [position for position in audio.tolist() if position not in kept]
        for pivot in (*audio_pivots, *text_pivots):
            if len(kept) >= int(len(audio) * keep_ratio) or not left:
                break
            unlike = -F.cosine_similarity(hidden[0, pivot], hidden[0, left], dim=-1)
            taken = {left[place] for place in unlike.topk(min(share, len(left))).indices.tolist()}
            kept |= taken
            left = [position for position in left if position not in taken]
        return torch.tensor(sorted(kept), device=audio.device)

    with shorten(handle, layer, choose):
        yield
