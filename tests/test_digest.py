"""What a digest tells apart."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headrouter_pl.digest import digest


class Thing:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Other(Thing):
    pass


class Shade(Enum):
    DARK = 1
    LIGHT = 2


DIFFERENT = [
    1, 1.0, "1", None, True, (1,), ((1,),), {"a": 1}, {"b": 1}, len, Thing, Thing(), Other(), Thing(a=1), Thing(a="1"),
    Thing(a=[1, 2]), Thing(a=[[1], 2]), Thing(a=Thing(b=1)), Thing(a=nn.Linear(1, 1)),
    {1}, {1, 2}, frozenset(), Shade.DARK, Shade.LIGHT, partial(len), partial(max, 1), partial(max, default=1),
    torch.zeros(2), torch.zeros(1, 2),
    np.zeros(2), np.array([0, 1], dtype=np.float32), np.array(["a"], dtype=object), np.array(["b"], dtype=object),
]  # fmt: skip


def test_different_values() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_equal_values() -> None:
    def make() -> Thing:
        return Thing(a=torch.arange(3.0), b={"c": np.arange(2)}, d=(1, "x"), e=Thing(f=len))

    assert digest(make()) == digest(make())
    assert digest(Thing(a=1, _b=2)) == digest(Thing(a=1, _b=3))
    assert digest(torch.ones(2, dtype=torch.bfloat16)) == digest(torch.ones(2))


def test_the_same_in_every_process() -> None:
    """Neither a set's order nor an address counts."""
    assert digest({"a", "b", "c"}) == "4234356636534f54"
    assert digest(np.random.default_rng(0)) == digest(np.random.default_rng(1))


@pytest.mark.parametrize("make", [Thing, lambda **given: given])
def test_a_circle_ends(make: Any) -> None:
    value = make(a=1)
    holder = make(inside=value)
    (value if isinstance(value, dict) else vars(value))["outside"] = holder
    assert len(digest(holder)) == 16
