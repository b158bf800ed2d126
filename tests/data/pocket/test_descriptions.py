"""Descriptions of known scenes."""

from __future__ import annotations

from headrouter_pl.data.pocket.descriptions import describe
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.scenes import Event, Scene


def scene_of(library: ClipLibrary, *labels: dict[str, str], speed: float = 1.0) -> Scene:
    events = []
    for at, wanted in enumerate(labels):
        clip = next(
            i for i, c in enumerate(library.clips) if all(getattr(c, name) == value for name, value in wanted.items())
        )
        events.append(Event(clip, float(at), at + 0.7, speed=speed))
    return Scene(float(len(labels)), tuple(events))


def test_names_all_in_order(tones_library: ClipLibrary) -> None:
    scene = scene_of(
        tones_library,
        {"voice": "asterisk/Menardi", "code": "7"},
        {"sound": "bird"},
        {"voice": "someone/Greek", "category": "tool"},
        {"instrument": "flute"},
    )
    item = tones_library.clips[scene.events[2].clip]
    assert describe(scene, tones_library) == (
        f"woman, Menardi, English: 7; bird; {item.gender}, {item.language}: {item.item}; flute"
    )


def test_a_voice_at_another_speed_has_no_name(tones_library: ClipLibrary) -> None:
    scene = scene_of(tones_library, {"voice": "asterisk/Menardi", "code": "7"}, speed=1.1)
    assert describe(scene, tones_library) == "woman, English: 7"


def test_too_much_is_not_described(tones_library: ClipLibrary) -> None:
    assert describe(scene_of(tones_library, *[{"sound": "bird"}] * 9), tones_library) == ""
    assert describe(Scene(3.0, ()), tones_library) == ""
