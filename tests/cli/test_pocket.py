"""Which questions of the Pocket benchmark the commands ask."""

from __future__ import annotations

import pytest

from headrouter_pl.cli.pocket import choose_items
from headrouter_pl.data.pocket.benchmark import PocketItem
from headrouter_pl.errors import ConfigurationError, HeadRouterError


def make_items(tasks: tuple[str, ...]) -> list[PocketItem]:
    """Six scenes of 8 s and four of 60 s, the last of each length about people."""
    return [
        PocketItem(f"test/{seconds:03}-{number:03}/{task}", f"{seconds:03}-{number:03}.flac", seconds, task, "voice",
                   "who", "w9", (), 0.5, (), ())
        for seconds, scenes in ((8, 6), (60, 4))
        for number in range(scenes)
        for task in (tasks if number < scenes - 1 else ("voice_count",))
    ]  # fmt: skip


def test_lengths_by_turns_and_scenes_shuffled() -> None:
    items = make_items(("gender", "language"))
    chosen = choose_items(items, None, None)
    assert sorted(item.key for item in chosen) == sorted(item.key for item in items)
    scenes = list(dict.fromkeys(item.audio for item in chosen))
    assert [int(name[:3]) for name in scenes] == [8, 60] * 4 + [8] * 2
    assert [item.audio for item in chosen] == sorted((item.audio for item in chosen), key=scenes.index)
    assert [name for name in scenes if name < "060"] != sorted(name for name in scenes if name < "060")
    assert choose_items(items, None, None) == chosen


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_scenes_are_the_first_of_all(count: int) -> None:
    items = make_items(("gender", "language"))
    first: dict[int, list[str]] = {}
    for item in choose_items(items, None, None):
        names = first.setdefault(round(item.seconds), [])
        if item.audio not in names:
            names.append(item.audio)
    chosen = choose_items(items, None, count)
    for seconds, names in first.items():
        found = dict.fromkeys(item.audio for item in chosen if item.seconds == seconds)
        assert list(found) == names[:count]
        assert choose_items(items, [seconds], count) == [item for item in chosen if item.seconds == seconds]


def test_tasks() -> None:
    items = make_items(("gender", "language"))
    chosen = choose_items(items, None, None, ["language"])
    assert sorted(item.key for item in chosen) == sorted(item.key for item in items if item.task == "language")
    of_8 = [item for item in choose_items(items, [8], None) if item.task == "language"]
    assert [item for item in chosen if item.seconds == 8] == of_8
    assert [item.audio for item in choose_items(items, None, 1, ["voice_count"])] == ["008-005.flac", "060-003.flac"]


def test_bad_input() -> None:
    items = make_items(("gender",))
    with pytest.raises(ConfigurationError, match="max_scenes must be positive, got 0"):
        choose_items(items, None, 0)
    with pytest.raises(HeadRouterError, match=r"no questions about scenes of \[7\] s; there are \[8, 60\]"):
        choose_items(items, [7, 8], None)
    with pytest.raises(HeadRouterError, match=r"no questions to ask: .*tasks=\['sound'\], of 10 questions"):
        choose_items(items, None, None, ["sound"])
