"""Errors: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadRouterError(Exception):
    """Base class of every error this package raises on purpose."""


class UnsupportedModelError(HeadRouterError):
    """The model is not one whose audio tokens can be dropped exactly."""


class ConfigurationError(HeadRouterError, ValueError):
    """An argument is outside its range, or two arguments contradict each other."""


class UnknownNameError(ConfigurationError):
    """A scorer, router or profile was asked for by a name nobody registered."""


class AudioMaskError(HeadRouterError):
    """It cannot be told which positions of the sequence are audio tokens."""


class ProfileMismatchError(HeadRouterError):
    """A head profile was fitted for a model of another shape."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Builds the error for an unregistered name, with the nearest known one.

    Args:
        kind: What the name should have named, e.g. ``"scorer"``.
        name: What was given.
        known: The registered names.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{hint} Known {kind}s: {', '.join(known)}.")
