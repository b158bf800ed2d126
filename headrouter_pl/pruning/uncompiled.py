"""Keeps compiled code from running past the hooks."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from headrouter_pl.pruning.engine import PruningEngine


class _Uncompiled:
    """Lets compiled code run uncompiled while any engine is attached: it does not look for hooks that came after it."""

    def __init__(self) -> None:
        self.engines: set[int] = set()
        self.lock = threading.Lock()
        self.stance: Any = None

    def enter(self, engine: PruningEngine) -> None:
        """Counts an engine in."""
        with self.lock:
            if not self.engines and "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
                self.stance = torch.compiler.set_stance("force_eager")
            self.engines.add(id(engine))

    def leave(self, engine: PruningEngine) -> None:
        """Counts an engine out; may be called for one that is not in."""
        with self.lock:
            self.engines.discard(id(engine))
            if not self.engines and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


UNCOMPILED = _Uncompiled()
