"""Safetensors files with a header of strings: read whole, and replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.results import replacing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read", "write"]


def read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads a file.

    Args:
        path: The file.

    Returns:
        Its header, empty if it has none, and its tensors by name, on the CPU.

    Raises:
        HeadRouterError: If there is no such file, or it is no safetensors file, or not whole.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise HeadRouterError(f"There is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            # Copies: what safetensors gives is the mapped file, and changes with it.
            return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise HeadRouterError(f"{path} is not a safetensors file, or is cut short: {error}") from error


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Writes a file, which appears only once it is whole; one that is there is replaced.

    Args:
        path: The file.
        tensors: By name, of any strides; they may share memory.
        header: Plain strings.

    Raises:
        HeadRouterError: If it cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    # Safetensors takes neither strides nor shared memory.
    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    try:
        with replacing(path) as scratch:
            # Not save_file, whose files nobody else may read.
            scratch.write_bytes(save(plain, metadata=dict(header) if header else None))
    except (OSError, SafetensorError) as error:
        raise HeadRouterError(f"{path} cannot be written: {error}") from error
