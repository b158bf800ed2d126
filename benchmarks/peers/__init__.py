"""Reference implementations of the same pruning in the way of the peers, to measure beside ours.

Our own code after the papers and what their published code does; never imported by the package. As theirs, they take
one sample at a time, without padding.
"""

from peers.dart import dart
from peers.fastv import fastv
from peers.input_dropping import input_dropping
from peers.kv_eviction import kv_eviction

PEERS = {"fastv": fastv, "dart": dart, "kv eviction": kv_eviction, "input dropping": input_dropping}
"""Name -> function ``(model, keep_ratio, layer)`` that gives a context in which the model's prefills are pruned."""

__all__ = ["PEERS", "dart", "fastv", "input_dropping", "kv_eviction"]
