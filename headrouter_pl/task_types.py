"""Types of tasks, and the two families that they belong to."""

from __future__ import annotations

from collections.abc import Collection, Mapping

FAMILIES = ("semantic", "acoustic")
"""What is said, and how it sounds."""

TYPES: Mapping[str, str] = {"semantic": "semantic", "sound": "acoustic", "voice": "acoustic"}
"""The usual types, each with its family."""


def family_of(kind: str) -> str:
    """The family of a type of task: ``"semantic"``, or ``"acoustic"`` for all others."""
    return "semantic" if kind == "semantic" else "acoustic"


def type_among(kind: str, types: Collection[str]) -> str | None:
    """What a type of task is called among ``types``: by its name, or else by its family's; None where by neither."""
    return next((name for name in (kind, family_of(kind)) if name in types), None)
