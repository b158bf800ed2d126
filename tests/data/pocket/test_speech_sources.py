"""Labels of the speech sources, on small trees that look like the installed packages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.questions import role_of
from headrouter_pl.data.pocket.sources import (
    asterisk,
    festvox_ru,
    fillets,
    gcin,
    hedgewars,
    kajongg,
    klettres,
    ktuberling,
    pocketsphinx,
    qabcs,
    saytime,
    synthetic_phrases,
    tuxpaint_speech,
)
from headrouter_pl.data.pocket.sources._items import category_of, item_of
from headrouter_pl.data.pocket.splits import split_of

SOURCES = [
    asterisk.SOURCE,
    festvox_ru.SOURCE,
    fillets.SOURCE,
    gcin.SOURCE,
    hedgewars.SOURCE,
    kajongg.SOURCE,
    klettres.SOURCE,
    ktuberling.SOURCE,
    pocketsphinx.SOURCE,
    qabcs.SOURCE,
    saytime.SOURCE,
    tuxpaint_speech.SOURCE,
]


def plant(root: Path, *files: str, size: int = 0) -> None:
    """Files that no index may decode: they hold no audio; each has a size of its own, unless told."""
    for number, name in enumerate(files, start=1):
        path = root / "usr/share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (size or number))


def write(root: Path, name: str, text: str) -> None:
    path = root / "usr/share" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def index(source: Source, root: Path) -> dict[str, Clip]:
    clips = list(source.index(root))
    assert [clip.key for clip in clips] == sorted({clip.key for clip in clips})
    assert all((root / clip.key).is_file() and clip.package in source.packages and clip.licence for clip in clips)
    return {clip.key.removeprefix("usr/share/"): clip for clip in clips}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_missing_package_is_named(source: Source, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="|".join(source.packages)):
        list(source.index(tmp_path))


def asterisk_tree(root: Path) -> dict[str, Clip]:
    sounds = "asterisk/sounds"
    for voice in ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU"):
        names = (
            "digits/7",
            "digits/h-1",
            "digits/mon-2",
            "letters/b",
            "phonetic/b_p",
            "vm-first",
            "hello-world",
            "beep",
        )
        plant(
            root,
            *(
                f"{sounds}/{voice}/{name}.wav"
                for name in (*names, "vm-login", "vm-options", "beep", "silence/1", "confbridge-join")
            ),
        )
    plant(root, *(f"{sounds}/it_IT_f_Menardi/phonetic/{name}_p.wav" for name in ("b", "ICAO/b")))
    plant(root, f"{sounds}/fr/digits/7.gsm", f"{sounds}/es/digits/20.gsm")
    return {key.removeprefix("asterisk/sounds/"): clip for key, clip in index(asterisk.SOURCE, root).items()}


def test_asterisk_labels(tmp_path: Path) -> None:
    clips = asterisk_tree(tmp_path)
    seven = clips["it_IT_m_Carlo/digits/7.wav"]
    assert (seven.code, seven.text, seven.english, seven.content) == ("7", "sette", "seven", "")
    assert (seven.voice, seven.gender, seven.language) == ("asterisk/Carlo", "man", "Italian")
    assert clips["en_US_f_Allison/letters/b.wav"].code == "B"
    assert clips["ru_RU_f_IvrvoiceRU/letters/b.wav"].code == ""
    assert clips["en_US_f_Allison/phonetic/b_p.wav"].code == "bravo"
    assert clips["es_MX_f_Allison/phonetic/b_p.wav"].code == clips["es_MX_f_Allison/phonetic/b_p.wav"].english == ""
    assert clips["it_IT_f_Menardi/phonetic/ICAO/b_p.wav"].code == "bravo"
    assert clips["it_IT_f_Menardi/phonetic/b_p.wav"].code == ""
    assert clips["en_US_f_Allison/hello-world.wav"].text == "hello world"
    assert clips["fr_CA_f_June/hello-world.wav"].text == ""
    assert clips["fr_CA_f_June/digits/mon-2.wav"].english == "march"
    assert clips["en_US_f_Allison/vm-login.wav"].english == ""
    assert clips["es/digits/20.gsm"].text == "veinte"
    assert not any(name in key for key in clips for name in ("beep", "silence", "join"))
    assert not any("vm-options" in key for key in clips)  # "press one to ..."


def test_asterisk_prompts_of_the_same_words_share_content(tmp_path: Path) -> None:
    clips = asterisk_tree(tmp_path)
    prompts = [clip for key, clip in clips.items() if key.endswith(("/vm-first.wav", "/h-1.wav"))]
    assert {clip.content for clip in prompts} == {"asterisk:first"}
    assert len({clip.language for clip in prompts}) == 5


def test_asterisk_reads_gsm_without_header(tmp_path: Path) -> None:
    clips = asterisk_tree(tmp_path)
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(8_000) / 8_000)
    for key in ("fr/digits/7.gsm", "en_US_f_Allison/digits/7.wav"):
        path = tmp_path / clips[key].key
        if key.endswith("gsm"):
            soundfile.write(path, tone, 8_000, format="RAW", subtype="GSM610")
        else:
            soundfile.write(path, tone, 8_000)
        assert asterisk.SOURCE.read is not None
        samples = asterisk.SOURCE.read(tmp_path, clips[key])
        assert samples.dtype == np.float32
        assert abs(len(samples) - SAMPLING_RATE) < SAMPLING_RATE // 20
        spectrum = np.abs(np.fft.rfft(samples))
        assert abs(int(spectrum.argmax()) * SAMPLING_RATE / len(samples) - 400) < 5


def test_qabcs_names_what_the_word_says_not_the_picture(tmp_path: Path) -> None:
    for code, words in {"de": ("affe", "drachen"), "ru": ("ы", "рыба")}.items():
        plant(tmp_path, *(f"qabcs/abcs/{code}/sounds/words/{word}.ogg" for word in words))
    plant(tmp_path, *(f"qabcs/abcs/ru/sounds/alpha/{letter}.ogg" for letter in ("ы", "ж")))
    lines = "animals:a=affe==chimpanzee=chimpanzee\nmisc:d=drachen==kite=kite\n"
    write(tmp_path, "qabcs/abcs/de/abc1.properties", lines)
    lines = "vehicles:ы=ы==locomotive=locomotive\nanimals:р=рыба==angelfish=angelfish\n"
    write(tmp_path, "qabcs/abcs/ru/abc1.properties", lines)
    clips = {key.removeprefix("qabcs/abcs/"): clip for key, clip in index(qabcs.SOURCE, tmp_path).items()}
    items = {key: (clip.item, clip.category, clip.content) for key, clip in clips.items() if "/words/" in key}
    assert items == {
        "de/sounds/words/affe.ogg": ("monkey", "animal", "item:monkey"),
        "de/sounds/words/drachen.ogg": ("", "", "qabcs:drachen"),
        "ru/sounds/words/рыба.ogg": ("fish", "fish", "item:fish"),
    }
    assert clips["ru/sounds/alpha/ж.ogg"].content == "letter:ж"
    assert role_of(clips["ru/sounds/alpha/ж.ogg"]) == ""  # else a letter is said that is not the one asked for


def test_one_recording_under_two_names_is_left_out(tmp_path: Path) -> None:
    voices = "games/hedgewars/Data/Sounds/voices"
    plant(tmp_path, *(f"{voices}/Classic/{name}.ogg" for name in ("Melon", "Watchthis", "Coward")))
    assert list(index(hedgewars.SOURCE, tmp_path)) == [f"{voices}/Classic/Coward.ogg"]


def test_hedgewars_labels(tmp_path: Path) -> None:
    voices = "games/hedgewars/Data/Sounds/voices"
    names = [
        f"{voices}/{name}.ogg" for name in ("Default/Coward", "Pirate/Enemydown", "Default/Ow1", "Default_pl/Coward")
    ]
    plant(tmp_path, *names, f"{voices}/Russian/Coward.ogg")
    clips = {key.removeprefix(voices + "/"): clip for key, clip in index(hedgewars.SOURCE, tmp_path).items()}
    assert list(clips) == ["Default/Coward.ogg", "Default_pl/Coward.ogg", "Pirate/Enemydown.ogg", "Russian/Coward.ogg"]
    pirate, polish = clips["Pirate/Enemydown.ogg"], clips["Default_pl/Coward.ogg"]
    assert (pirate.phrase, pirate.english, pirate.language) == ("hedgewars/Enemydown", "enemy down", "English")
    assert (polish.phrase, polish.english, polish.language) == ("", "", "Polish")
    assert polish.content == clips["Default/Coward.ogg"].content == "hedgewars:Coward"
    assert clips["Russian/Coward.ogg"].language == ""


def test_hedgewars_pack_that_copies_another_is_the_same_voice(tmp_path: Path) -> None:
    voices = "games/hedgewars/Data/Sounds/voices"
    plant(tmp_path, f"{voices}/Classic/Coward.ogg", f"{voices}/Default/Coward.ogg", size=9)
    plant(tmp_path, f"{voices}/Classic/Stupid.ogg", f"{voices}/Default/Stupid.ogg")
    clips = index(hedgewars.SOURCE, tmp_path)
    assert [key.removeprefix(voices) for key in clips] == [
        "/Classic/Coward.ogg",
        "/Classic/Stupid.ogg",
        "/Default/Stupid.ogg",
    ]
    assert {clip.voice for clip in clips.values()} == {"hedgewars/Default"}


def test_tuxpaint_labels(tmp_path: Path) -> None:
    stamps = "tuxpaint/stamps"
    write(tmp_path, f"{stamps}/clothes/hats/brown_hat.txt", "A brown hat.\nes.utf8=Un sombrero.\n")
    write(tmp_path, f"{stamps}/symbols/math/7.txt", "Seven.\nfr.utf8=Sept.\nja.utf8=なな\n")
    write(tmp_path, f"{stamps}/symbols/alphabets/b_filled.txt", "The letter b.\nes.utf8=La letra b.\n")
    plant(
        tmp_path,
        f"{stamps}/clothes/hats/brown_hat.ogg",
        f"{stamps}/clothes/hats/brown_hat_desc.ogg",
        f"{stamps}/clothes/hats/brown_hat_desc_es.ogg",
        f"{stamps}/symbols/math/7_ja.ogg",
        f"{stamps}/symbols/math/7_desc_fr.ogg",
        f"{stamps}/symbols/alphabets/b_filled_desc_es.ogg",
        f"{stamps}/symbols/alphabets/b_filled_en_GB.ogg",
    )
    clips = {key.rpartition("/")[2]: clip for key, clip in index(tuxpaint_speech.SOURCE, tmp_path).items()}
    assert "brown_hat.ogg" not in clips
    hat = clips["brown_hat_desc_es.ogg"]
    assert (hat.item, hat.category, hat.content) == ("hat", "clothes", "item:hat")
    assert (hat.text, hat.english, hat.language) == ("Un sombrero.", "A brown hat.", "Spanish")
    assert clips["brown_hat_desc.ogg"].text == "A brown hat."
    assert (clips["7_ja.ogg"].code, clips["7_ja.ogg"].text) == ("7", "なな")
    assert (clips["7_desc_fr.ogg"].code, clips["7_desc_fr.ogg"].text) == ("7", "sept")
    assert clips["7_ja.ogg"].voice != "tuxpaint/ja"
    letter, sentence = clips["b_filled_en_GB.ogg"], clips["b_filled_desc_es.ogg"]
    assert (letter.code, letter.gender, letter.content) == ("B", "man", "")
    assert (sentence.code, sentence.content) == ("", "tuxpaint:the letter b.")


def test_one_object_has_one_content_in_all_sources(tmp_path: Path) -> None:
    write(tmp_path, "ktuberling/sounds/fr.soundtheme", '<sound name="spectacles" file="fr/lunettes.wav" />')
    write(tmp_path, "ktuberling/sounds/en.soundtheme", '<sound name="moon_earth" file="en/moon_earth.ogg" />')
    plant(tmp_path, "ktuberling/sounds/fr/lunettes.wav", "ktuberling/sounds/en/moon_earth.ogg")
    plant(tmp_path, "ktuberling/sounds/en/unlisted.ogg", "qabcs/abcs/de/sounds/words/erde.ogg")
    write(tmp_path, "tuxpaint/stamps/clothes/glasses1.txt", "A pair of glasses.\n")
    plant(tmp_path, "tuxpaint/stamps/clothes/glasses1_desc.ogg")
    write(tmp_path, "qabcs/abcs/de/abc1.properties", "language:Deutsch\nmisc:e=erde==earth=earth\n")
    words = index(ktuberling.SOURCE, tmp_path)
    assert list(words) == ["ktuberling/sounds/en/moon_earth.ogg", "ktuberling/sounds/fr/lunettes.wav"]
    earth, glasses = words.values()
    assert (earth.text, earth.language, glasses.text, glasses.language) == ("earth", "English", "", "French")
    assert glasses.content == next(iter(index(tuxpaint_speech.SOURCE, tmp_path).values())).content == "item:glasses"
    german = next(iter(index(qabcs.SOURCE, tmp_path).values()))
    assert german.content == earth.content == "item:earth"
    assert (german.text, german.english, german.category) == ("erde", "earth", "space")


@pytest.mark.parametrize(
    ("stem", "description", "item", "category"),
    [
        ("cow", "A cow.", "cow", "animal"),
        ("iso_fireengine", "A fire truck.", "fire truck", "vehicle"),
        ("apple_red", "A red apple.", "apple", "food"),
        ("3_earth", "Earth. Our planet.", "earth", "space"),
        ("seagull", "A seagull.", "gull", "bird"),
        ("head_female2", "A head.", "head", "body part"),
        ("yield", "“Yield” means you have to let other people go first.", "", ""),
        ("unknown_thing", "Something that takes many words to tell.", "", ""),
    ],
)
def test_items(stem: str, description: str, item: str, category: str) -> None:
    assert item_of(stem, description) == item
    if item in ("apple", "earth", "fire truck"):
        assert category_of(item) == category


def test_category_by_object_then_by_folder() -> None:
    assert category_of("whale", "animals/mammals/aquatic") == "animal"
    assert category_of("weevil", "animals") == "insect"
    assert category_of("cow", "animals/mammals/bovines") == "animal"
    assert category_of("thing") == ""


def test_fillets_labels(tmp_path: Path) -> None:
    game = "games/fillets-ng"
    script = 'dialogId("a-m-eye", "font_small", "See\\nthat?")\ndialogStr("Vidíš \\"to\\"?")\n'
    write(tmp_path, f"{game}/script/wreck/dialogs_cs.lua", script)
    names = ("cs/a-m-eye", "cs/a-x-noise", "nl/a-m-eye")
    plant(tmp_path, *(f"{game}/sound/wreck/{name}.ogg" for name in names))
    (clip,) = index(fillets.SOURCE, tmp_path).values()
    assert (clip.english, clip.text) == ("See that?", 'Vidíš "to"?')
    assert (clip.voice, clip.gender, clip.room) == ("fillets/cs/small", "woman", "fillets/wreck")


def test_klettres_labels(tmp_path: Path) -> None:
    listing = '<!-- <sound name="X" file="en/alpha/a.ogg" /> --><sound name="{}" file="{}" />'
    write(tmp_path, "klettres/en/sounds.xml", listing.format("B", "en/alpha/a.ogg"))
    write(tmp_path, "klettres/fr/sounds.xml", listing.format("BA", "fr/syllab/ad-1.ogg"))
    plant(tmp_path, "klettres/en/alpha/a.ogg", "klettres/fr/syllab/ad-1.ogg")
    letter, syllable = index(klettres.SOURCE, tmp_path).values()
    assert (letter.code, letter.content, letter.gender) == ("B", "", "man")
    assert (syllable.code, syllable.content, syllable.text) == ("", "syllable:ba", "ba")


def test_other_labels(tmp_path: Path) -> None:
    plant(
        tmp_path, "gcin-voice/ogg/ㄇㄚ3/3.ogg", "saytime/20.au", "saytime/oclock.au", "kajongg/voices/de/male1/b2.ogg"
    )
    data = "pocketsphinx/test/data"
    plant(tmp_path, f"{data}/cards/001.wav", f"{data}/librivox/x-1.wav")
    write(tmp_path, f"{data}/cards/cards.transcription", "<s> ten of clubs  </s> (001)\n")
    write(tmp_path, f"{data}/librivox/transcription", "<s> he was not </s> (x-1)\n")
    russian = "festival/voices/russian/msu_ru_nsh_clunits"
    plant(tmp_path, f"{russian}/wav/ru_1.wav", f"{russian}/wav/ru_2.wav")
    write(tmp_path, f"{russian}/etc/txt.done.data", '( ru_1 "вол+ос" )\n')
    (syllable,) = index(gcin.SOURCE, tmp_path).values()
    assert (syllable.text, syllable.voice, syllable.gender) == ("ㄇㄚ3", "gcin/Liu", "man")
    twenty, clock = index(saytime.SOURCE, tmp_path).values()
    assert (twenty.code, twenty.text, clock.code, clock.text) == ("20", "twenty", "", "o'clock")
    (call,) = index(kajongg.SOURCE, tmp_path).values()
    assert (call.english, call.language, call.gender) == ("bamboo two", "German", "man")
    assert [clip.text for clip in index(pocketsphinx.SOURCE, tmp_path).values()] == ["ten of clubs", "he was not"]
    assert [clip.text for clip in index(festvox_ru.SOURCE, tmp_path).values()] == ["волос"]


def test_synthetic_phrases_are_those_that_training_hears_of_actors(tmp_path: Path) -> None:
    voices = "games/hedgewars/Data/Sounds/voices"
    names = ("Amazing", "Boring", "Coward", "Excellent", "Hello", "Incoming", "Missed", "Stupid", "Victory", "Grenade")
    plant(tmp_path, *(f"{voices}/Mobster/{name}.ogg" for name in names), f"{voices}/British/Revenge.ogg")
    trained = {clip.phrase: clip for clip in hedgewars.index(tmp_path) if split_of(clip) == "train"}
    assert 0 < len(trained) < len(names) + 1
    clips = list(synthetic_phrases.SOURCE.index(tmp_path))
    assert [clip.key for clip in clips] == sorted({clip.key for clip in clips})
    assert Counter(clip.phrase for clip in clips) == dict.fromkeys(trained, len(synthetic_phrases.VOICES))
    for clip in clips:
        assert (clip.text, clip.content) == (trained[clip.phrase].text, trained[clip.phrase].content)
        assert clip.voice.startswith("synthetic/")
        assert split_of(clip) in ("train", "sealed")
