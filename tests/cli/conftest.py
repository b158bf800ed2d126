"""What tests of several commands share."""

from __future__ import annotations

import pytest
import tiny_pocket


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny Audio Flamingo 3 with the pocket model's processor, as ``from_pretrained`` reads it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pocket.build().save_pretrained(folder)
    tiny_pocket.make_processor().save_pretrained(folder)
    return str(folder)
