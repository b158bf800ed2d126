"""Prompts of the Asterisk telephone exchange: the same sentences, numbers and letters in five languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.sources._text import NATO, NUMBERS, find, latin_letter, words

__all__ = ["SOURCE"]


@dataclass(frozen=True)
class Voice:
    """One folder of prompts: who speaks, and what may be said of it without listening."""

    package: str
    folder: str
    name: str
    gender: str
    language: str
    licence: str
    suffix: str = ".wav"
    nato: str = ""  # the folder whose words are the NATO alphabet


# Genders are in the folders' names; those of `es` and `fr` follow the names of the speakers in the copyright files.
# es_MX: the package credits Allison Smith alone, as for English.
CORE = (
    Voice(
        "asterisk-core-sounds-en-wav", "en_US_f_Allison", "Allison", "woman", "English", "CC-BY-SA-3.0", nato="phonetic"
    ),
    Voice("asterisk-core-sounds-es-wav", "es_MX_f_Allison", "Allison", "woman", "Spanish", "CC-BY-SA-3.0"),
    Voice("asterisk-core-sounds-fr-wav", "fr_CA_f_June", "June", "woman", "French", "CC-BY-SA-3.0"),
    Voice("asterisk-core-sounds-it-wav", "it_IT_m_Carlo", "Carlo", "man", "Italian", "CC-BY-3.0"),
    Voice("asterisk-core-sounds-ru-wav", "ru_RU_f_IvrvoiceRU", "IvrvoiceRU", "woman", "Russian", "CC-BY-3.0"),
)
SECOND = (
    Voice(
        "asterisk-prompt-it-menardi-wav",
        "it_IT_f_Menardi",
        "Menardi",
        "woman",
        "Italian",
        "CC-BY-SA-3.0",
        nato="phonetic/ICAO",
    ),
    Voice("asterisk-prompt-fr-armelle", "fr", "Armelle", "woman", "French", "BSD-2-Clause", ".gsm"),
    Voice("asterisk-prompt-es-co", "es", "July", "woman", "Spanish", "GPL-2.0-only", ".gsm"),
)

NO_SPEECH = re.compile(
    r"^(silence/.*|.*2tone|beep.*|tt-monkeys|confbridge-(begin-glorious-.|join|leave)|phonetic/niner)$"
)
# Sentences with numbers in them ("press seven to delete this message"), left out: a scene is to hold one number.
_MENUS = (
    "conf-adminmenu conf-adminmenu-162 conf-onlyone conf-usermenu conf-usermenu-162 demo-instruct dictate/play_help "
    "dictate/record_help dir-instr dir-intro dir-intro-fn dir-usingkeypad followme/options priv-callee-options "
    "screen-callee-options vm-advopts vm-calldiffnum vm-delete vm-forward vm-forward-multiple vm-forwardoptions "
    "vm-instructions vm-leavemsg vm-msginstruct vm-next vm-onefor vm-onefor-full vm-options vm-opts vm-opts-full "
    "vm-prev vm-reachoper vm-repeat vm-review vm-review-nonurgent vm-review-urgent vm-savemessage vm-saveoper "
    "vm-tempgreeting vm-tempgreeting2 vm-tocallback vm-tocallnum vm-toenternumber vm-toforward vm-tohearenv "
    "vm-tomakecall vm-toreply vm-torerecord vm-undelete"
)
MENUS = frozenset(_MENUS.split())

ORDINAL_WORDS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth "
    "seventieth eightieth ninetieth"
)
ORDINALS = dict(
    zip(
        [*map(str, range(1, 21)), *map(str, range(30, 100, 10))],
        ORDINAL_WORDS.split(),
        strict=True,
    )
)
DAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]
MONTH_WORDS = "january february march april may june july august september october november december"
MONTHS = MONTH_WORDS.split()

# What a prompt says where its name does not tell; short ones only, the long ones stay without a gloss.
SAYS = {
    "agent-loggedoff": "agent logged off",
    "agent-loginok": "agent logged in",
    "auth-thankyou": "thank you",
    "conf-errormenu": "invalid choice",
    "conf-hasjoin": "is now in the conference",
    "conf-hasleft": "has left the conference",
    "conf-leaderhasleft": "the leader has left the conference",
    "conf-locked": "this conference is locked",
    "conf-lockednow": "the conference is now locked",
    "conf-muted": "you are now muted",
    "conf-now-muted": "the conference is now muted",
    "conf-now-unmuted": "the conference is now unmuted",
    "conf-unlockednow": "the conference is now unlocked",
    "conf-unmuted": "you are now unmuted",
    "conf-thereare": "there are currently",
    "demo-echodone": "the echo test has been completed",
    "dictate/forhelp": "press zero for help",
    "dictate/pause": "pause",
    "dictate/paused": "paused",
    "dictate/playback": "playback",
    "dictate/playback_mode": "playback mode",
    "dictate/record": "record",
    "dictate/record_mode": "record mode",
    "digits/a-m": "a m",
    "digits/oclock": "o'clock",
    "digits/p-m": "p m",
    "dir-welcome": "welcome to the directory",
    "im-sorry": "i'm sorry",
    "letters/ascii38": "ampersand",
    "letters/ascii42": "star",
    "letters/ascii44": "comma",
    "letters/ascii58": "colon",
    "letters/ascii59": "semicolon",
    "letters/ascii60": "less than",
    "letters/ascii62": "greater than",
    "letters/ascii63": "question mark",
    "letters/ascii92": "backslash",
    "letters/ascii95": "underscore",
    "letters/exclaimation-point": "exclamation point",
    "privacy-thankyou": "thank you",
    "queue-less-than": "less than",
    "queue-minute": "minute",
    "queue-minutes": "minutes",
    "queue-reporthold": "hold time",
    "queue-seconds": "seconds",
    "queue-thankyou": "thank you for your patience",
    "spy-agent": "agent",
    "spy-console": "console",
    "spy-local": "local",
    "tt-monkeysintro": "they have been carried away by monkeys",
    "tt-somethingwrong": "something is terribly wrong",
    "tt-weasels": "weasels have eaten our phone system",
    "vm-and": "and",
    "vm-deleted": "message deleted",
    "vm-extension": "extension",
    "vm-first": "first",
    "vm-for": "for",
    "vm-from": "from",
    "vm-goodbye": "goodbye",
    "vm-isonphone": "is on the phone",
    "vm-isunavail": "is unavailable",
    "vm-last": "last",
    "vm-message": "message",
    "vm-messages": "messages",
    "vm-minutes": "minutes",
    "vm-nomore": "no more messages",
    "vm-no": "no",
    "vm-password": "password",
    "vm-press": "press",
    "vm-saved": "saved",
    "vm-received": "received",
    "vm-undeleted": "message undeleted",
    "vm-youhave": "you have",
    "vm-Family": "family",
    "vm-Friends": "friends",
    "vm-Old": "old",
    "vm-Urgent": "urgent",
    "vm-Work": "work",
}
# Names that only label a prompt: their words are not what is said.
LABELS = re.compile(
    r"^(agent|auth|basic|conf|confbridge|demo|dictate|dir|followme|indigen|letters/ascii\d|pbx|phonetic|pm|priv|privacy"
    r"|queue|screen|spy|ss|tt|vm|something|invalid|transfer|info|enter-num|entr|if|is$|for$|astcc|at-tone|all-circuits|call-fwd|cannot|check-number|feature|from-unknown|num-was"
    r"|number-not|please-try-call|pls-|simul|sorry-youre|speed-dial-empty|to-|unidentified|is-set)"
)


def english(prompt: str) -> str:
    """What a prompt says, in English and lower case; empty where its name does not tell.

    Args:
        prompt: Path of the file in its folder, without the ending.

    Returns:
        For example ``"seven"``, ``"monday"``, ``"b"``, ``"please try again"``.
    """
    if prompt in SAYS:
        return SAYS[prompt]
    group, _, name = prompt.rpartition("/")
    if group == "digits":
        kind, _, number = name.partition("-")
        if kind == "day":
            return DAYS[int(number)]
        if kind == "mon":
            return MONTHS[int(number)]
        if kind == "h":
            return ORDINALS.get(number, "" if number.isdigit() else f"{number}th")
        if not name.isalpha() or len(name) < 2:
            return NUMBERS["English"].get(name, "")
    return "" if LABELS.match(prompt) else words(name)


def label(voice: Voice, key: str, prompt: str) -> Clip:
    """The clip of a prompt."""
    group, _, name = prompt.rpartition("/")
    language, gloss, code, text = voice.language, english(prompt), "", ""
    if group == "digits" and name in NUMBERS["English"]:
        code, text = name, NUMBERS[language][name]
    elif group == "letters" and language != "Russian":  # there the names stand for Cyrillic letters
        code = latin_letter("z" if name == "zed" else name)
        text = code or (gloss if language == "English" else "")
        gloss = "zed" if name == "zed" else gloss
    elif voice.nato and group == voice.nato:
        code = NATO.get(name.removesuffix("_p").upper(), "")
        gloss = text = code
    elif group.startswith("phonetic"):
        gloss = ""  # cities, first names: other words than in English
    elif language == "English":
        text = gloss
    return Clip(
        key=key,
        package=voice.package,
        kind="speech",
        # Some words were recorded for several prompts: what is said tells them together in every language.
        content="" if code else f"asterisk:{english(prompt) or prompt}",
        voice=f"asterisk/{voice.name}",
        gender=voice.gender,
        language=language,
        text=text,
        english=gloss,
        code=code,
        licence=voice.licence,
    )


def index(voices: tuple[Voice, ...], root: Path) -> Iterator[Clip]:
    """Clips of the prompts, without tones and silence."""
    clips = []
    for voice in voices:
        folder = f"asterisk/sounds/{voice.folder}"
        for key, _ in find(root, folder, voice.suffix, voice.package):
            prompt = key.removeprefix(f"usr/share/{folder}/").removesuffix(voice.suffix)
            if not NO_SPEECH.match(prompt) and prompt not in MENUS:
                clips.append(label(voice, key, prompt))
    yield from sorted(clips, key=lambda clip: clip.key)


def read(root: Path, clip: Clip) -> np.ndarray:
    """Decodes a wav, or a GSM file, which has no header to tell its rate."""
    path = root / clip.key
    if path.suffix != ".gsm":
        return read_audio(path, SAMPLING_RATE)
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(
            path, dtype="float32", samplerate=8_000, channels=1, format="RAW", subtype="GSM610"
        )
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path} cannot be read as GSM: {error}") from error
    return np.ascontiguousarray(soxr.resample(samples, rate, SAMPLING_RATE), dtype=np.float32)


VERSIONS = {voice.package: "1.6.1-1" for voice in CORE} | {
    "asterisk-prompt-it-menardi-wav": "1:1.4.22+mm20110907-3.1",
    "asterisk-prompt-fr-armelle": "20070613-2.2",
    "asterisk-prompt-es-co": "0.20070403-2.1",
}
SOURCE = Source("asterisk", VERSIONS, partial(index, CORE + SECOND), read)
