"""Which recordings are sealed: held back from development, so that a later evaluation finds them unseen."""

from __future__ import annotations

import hashlib

__all__ = ["is_sealed"]


def is_sealed(key: str) -> bool:
    """Whether the recording named `key` is sealed.

    A recording is sealed when the first hex digit of `sha256(key)` is 0 or 1: about one in eight, decided by
    name alone, so that nothing has to be opened to know it.

    Args:
        key: the path inside its package or wheel, with `/`, e.g. `moonshine_voice/assets/two_cities.wav`.

    Returns:
        True when the recording must be left out (not opened, not listened to).

    Example:
        >>> is_sealed("moonshine_voice/assets/two_cities.wav")
        False
    """
    return hashlib.sha256(key.encode("utf-8")).hexdigest()[0] in "01"
