"""Plain-text tables, figures as JSON, and a name for the machine figures were taken on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from headrouter_pl.results import format_table

__all__ = ["dump_figures", "format_table", "machine"]


def dump_figures(figures: Mapping[str, Any]) -> str:
    """JSON with a line for each member of its lists of rows, and of its mappings to lists."""
    parts = []
    for name, value in figures.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            text = "[\n  " + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n ]"
        elif isinstance(value, Mapping) and value and all(isinstance(entry, list) for entry in value.values()):
            lines = (f"{json.dumps(key)}: {json.dumps(rows, ensure_ascii=False)}" for key, rows in value.items())
            text = "{\n  " + ",\n  ".join(lines) + "\n }"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def machine() -> str:
    """The machine in words: its GPU, or its processor and the threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
