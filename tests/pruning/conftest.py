"""One tiny model for the tests that do not cross families. Tests that change a model build their own."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.build("audioflamingo3")


@pytest.fixture(scope="module")
def batch(model: Any) -> dict[str, torch.Tensor]:
    return tiny.inputs("audioflamingo3", model, [[20], [9]])
