"""A short name of what an object was made with, by which a resumed run knows that it prunes as before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["digest"]

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # another in each process


def digest(value: Any) -> str:
    """Sixteen hex digits of a sha256 over an object's class and public attributes, arrays included, all the way down.

    Args:
        value: A scorer, a router, a profile, or plain values. Neither attributes that begin with an
            underscore count, nor weights of modules, which may be gigabytes.
    """
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:16]


def _parts(value: Any, above: tuple[int, ...] = ()) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    above = (*above, id(value))
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield f"{name!r}:".encode()
            yield from () if id(entry) in above else _parts(entry, above)
        yield b"}"
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from () if id(entry) in above else _parts(entry, above)
        yield b"]"
    elif isinstance(value, (set, frozenset)):  # in no order that would be the same in the next process
        yield from sorted(digest(entry).encode() for entry in value)
        yield b")"
    elif isinstance(value, Enum):
        yield f"{type(value).__qualname__}.{value.name}".encode()
    elif isinstance(value, partial):
        yield from _parts([value.func, value.args, value.keywords], above)
    elif hasattr(value, "__qualname__"):  # a function or a class
        yield value.__qualname__.encode()
    elif hasattr(value, "__dict__"):
        yield type(value).__qualname__.encode()
        if not isinstance(value, nn.Module):
            yield from _parts({name: held for name, held in vars(value).items() if not name.startswith("_")}, above)
    else:
        yield _ADDRESS.sub("", repr(value)).encode()
