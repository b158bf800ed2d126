"""What a decoder's layers cost: FLOPs and KV-cache bytes, by formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from headrouter_pl.models import LalmHandle


@dataclass(frozen=True)
class LayerCost:
    """Cost of one decoder layer.

    Attributes:
        weights: Weights that each token is multiplied with. Of a mixture's experts, those that one token is routed to.
        heads_dim: Query heads times head width.
        kv_dim: Numbers stored per cached token, keys and values; 0 where the layer reads another one's.
        window: Width of its sliding window, or None.
    """

    weights: int
    heads_dim: int
    kv_dim: int
    window: int | None

    @classmethod
    def of(cls, handle: LalmHandle, index: int) -> LayerCost:
        """Reads the cost of a layer off its modules."""
        queries, keys = handle.num_heads(index)
        dim = handle.head_dim(index)
        kv_dim = 0 if handle.shares_keys(index) else 2 * keys * dim
        return cls(_multiplied_weights(handle.layers[index]), queries * dim, kv_dim, handle.window(index))

    def flops(self, tokens: int) -> int:
        """FLOPs of a causal prefill of ``tokens`` rows: ``2 * weights`` a row, ``4 * heads_dim`` a visible pair."""
        window = tokens if self.window is None else min(self.window, tokens)
        pairs = window * (window + 1) // 2 + (tokens - window) * window
        return 2 * self.weights * tokens + 4 * self.heads_dim * pairs

    def cached_tokens(self, tokens: int) -> int:
        """Tokens that the layer's dynamic cache holds after a prefill of ``tokens``."""
        return tokens if self.window is None else min(tokens, self.window - 1)

    def kv_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of keys and values after a prefill of ``tokens`` tokens into a dynamic cache."""
        return self.kv_dim * self.cached_tokens(tokens) * dtype.itemsize


def _multiplied_weights(layer: nn.Module) -> int:
    total = 0
    for module in layer.modules():
        if isinstance(module, nn.Linear):  # not by its parameters, which may be packed to four bits
            total += module.in_features * module.out_features
            continue
        experts = getattr(module, "num_experts", None)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 2:
                total += parameter.numel()
            elif parameter.dim() == 3 and experts:  # stacked experts [E, ., .]
                top = getattr(getattr(module, "config", None), "num_experts_per_tok", None) or _top_k(layer)
                total += parameter.numel() // experts * top
    return total


def _top_k(layer: nn.Module) -> int:
    for module in layer.modules():
        if isinstance(top := getattr(module, "top_k", None), int):
            return top
    return 1
