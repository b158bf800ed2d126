"""What the speech sources share: finding files, number words, letters, language names."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.clips import Clip

__all__ = ["LANGUAGES", "LETTERS", "NATO", "NUMBERS", "distinct", "find", "latin_letter", "letter_content", "words"]

LANGUAGES = {
    "ar": "Arabic",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "en_GB": "English",
    "en_gb": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "he": "Hebrew",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "lt": "Lithuanian",
    "ml": "Malayalam",
    "nb": "Norwegian",
    "nds": "Low German",
    "nl": "Dutch",
    "nn": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "pt_BR": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sl": "Slovenian",
    "sr": "Serbian",
    "sr@ijekavian": "Serbian",
    "sr@ijekavianlatin": "Serbian",
    "sr@latin": "Serbian",
    "sv": "Swedish",
    "tn": "Tswana",
    "uk": "Ukrainian",
    "wa": "Walloon",
    "zh_tw": "Mandarin",
}
"""Code in file names -> English name."""

CODES = [*map(str, range(21)), *map(str, range(30, 100, 10))]
"""The numbers that are code words."""

NUMBERS = {
    language: dict(zip(CODES, words.split(), strict=True))
    for language, words in {
        "English": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety",
        "Spanish": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
        "diecisiete dieciocho diecinueve veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
        "French": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize "
        "dix-sept dix-huit dix-neuf vingt trente quarante cinquante soixante soixante-dix quatre-vingts "
        "quatre-vingt-dix",
        "Italian": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici "
        "quindici sedici diciassette diciotto diciannove venti trenta quaranta cinquanta sessanta settanta ottanta "
        "novanta",
        "Russian": "ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать "
        "четырнадцать пятнадцать шестнадцать семнадцать восемнадцать девятнадцать двадцать тридцать сорок пятьдесят "
        "шестьдесят семьдесят восемьдесят девяносто",
        "German": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
        "sechzehn siebzehn achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    }.items()
}
"""Language -> code -> how it is said."""

LETTERS = frozenset(string.ascii_uppercase)

SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec "
    "romeo sierra tango uniform victor whiskey xray yankee zulu"
)
NATO = {word[0].upper(): word for word in SPELLING.split()}
"""Letter -> its word in the spelling alphabet."""


def find(root: Path, folder: str, suffix: str, package: str) -> Iterator[tuple[str, Path]]:
    """Audio files under a folder of a package.

    Args:
        root: Where the packages are installed, ``/`` on an installed system.
        folder: Where to look, from ``usr/share/`` on.
        suffix: How the names end.
        package: Debian package, for the error.

    Yields:
        Key and path of each file, sorted by key.

    Raises:
        AudioError: There is none.
    """
    base = root / "usr/share" / folder
    found = sorted((path.relative_to(root).as_posix(), path) for path in base.rglob(f"*{suffix}"))
    if not found:
        raise AudioError(f"no {suffix} under {base}: install the Debian package {package} (apt-get install {package})")
    yield from found


def latin_letter(name: str) -> str:
    """The code word of a letter's name: ``"B"`` for ``"b"``; empty for what is no plain Latin letter."""
    return name.upper() if name.upper() in LETTERS and len(name) == 1 else ""


def letter_content(name: str) -> str:
    """Content of a spoken letter: none of a plain Latin one, which is a code word."""
    return "" if latin_letter(name) else f"letter:{name}"


def words(name: str) -> str:
    """A file name as words: ``"enter-num"`` -> ``"enter num"``."""
    return " ".join(name.replace("-", " ").replace("_", " ").split()).lower()


def distinct(root: Path, clips: Iterable[Clip]) -> Iterator[Clip]:
    """Clips without copies: of files of one voice, one meaning and one size, the first.

    Packages install one recording for two pictures of an object. Sizes tell copies without opening a file, which a
    sealed clip forbids.
    """
    seen = set()
    for clip in clips:
        mark = (clip.voice, clip.english or clip.content, clip.text, (root / clip.key).stat().st_size)
        if mark not in seen:
            seen.add(mark)
            yield clip
