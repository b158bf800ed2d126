"""Speech spoken by the engines that Debian installs: code words, objects and sentences, for training alone."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.sources._items import OF_ITEM, category_of, item_of
from headrouter_pl.data.pocket.sources._text import LETTERS, NATO, NUMBERS
from headrouter_pl.data.pocket.splits import held_out

__all__ = ["SOURCE"]

LICENCES = {"flite": "Flite (BSD-like)", "espeak-ng": "GPL-3+"}
FORTUNES = "usr/share/games/fortunes"
WORDS = "usr/share/dict/american-english"
SECONDS = 30  # an engine that takes longer hangs


@dataclass(frozen=True)
class Voice:
    """A voice of an engine."""

    engine: str
    name: str
    gender: str
    language: str = "English"


ENGLISH = (
    Voice("flite", "awb", "man"),
    Voice("flite", "kal16", "man"),
    Voice("flite", "rms", "man"),
    Voice("flite", "slt", "woman"),
    Voice("espeak-ng", "en+f4", "woman"),
    Voice("espeak-ng", "en-029+m5", "man"),
    Voice("espeak-ng", "en-gb", "man"),
    Voice("espeak-ng", "en-gb-scotland+m3", "man"),
    Voice("espeak-ng", "en-gb-x-rp+f3", "woman"),
    Voice("espeak-ng", "en-us", "man"),
    Voice("espeak-ng", "en-us+f2", "woman"),
    Voice("espeak-ng", "en-us-nyc+f5", "woman"),
)
OTHERS = {
    "es": "Spanish",
    "fr": "French",  # by some names (`fr-fr`, `en-gb`) this version ignores the variant
    "it": "Italian",
    "ru": "Russian",
    "de": "German",
    "nl": "Dutch",
    "cs": "Czech",
    "pl": "Polish",
    "pt": "Portuguese",
    "cmn-latn-pinyin": "Mandarin",  # the voice `cmn` of this version misreads Chinese characters
}
FOREIGN = tuple(
    Voice("espeak-ng", f"{code}{variant}", gender, language)
    for code, language in OTHERS.items()
    for variant, gender in (("+m3", "man"), ("+f2", "woman"))
)

# From zero to twenty, where the shared table has no such language.
COUNTS = {
    "Dutch": "nul een twee drie vier vijf zes zeven acht negen tien elf twaalf dertien veertien vijftien zestien "
    "zeventien achttien negentien twintig",
    "Czech": "nula jedna dva tři čtyři pět šest sedm osm devět deset jedenáct dvanáct třináct čtrnáct patnáct šestnáct "
    "sedmnáct osmnáct devatenáct dvacet",
    "Polish": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć dziesięć jedenaście dwanaście trzynaście "
    "czternaście piętnaście szesnaście siedemnaście osiemnaście dziewiętnaście dwadzieścia",
    "Portuguese": "zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze quinze dezasseis "
    "dezassete dezoito dezanove vinte",
    "Mandarin": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十",
}
SYLLABLES = "ling2 yi1 er4 san1 si4 wu3 liu4 qi1 ba1 jiu3 shi2"
PINYIN = dict(zip("零一二三四五六七八九十", SYLLABLES.split(), strict=True))
RESPELT = {"xray": "x ray", "juliett": "juliet"}  # else the engines misread them

OBJECTS = {
    "animal": "antelope badger bat bear beaver bull calf camel cat cheetah cow coyote crocodile deer dog donkey "
    "elephant ferret fox frog gazelle giraffe goat gorilla hamster hare hedgehog hippopotamus horse hyena kangaroo "
    "kitten koala lamb leopard lion lizard llama mole monkey moose mouse mule otter panda panther pig pony "
    "puppy rabbit raccoon rat rhinoceros sheep skunk snake squirrel tiger toad turtle walrus weasel wolf zebra",
    "bird": "blackbird canary chicken crane crow cuckoo duck eagle falcon flamingo goose hawk heron hummingbird magpie "
    "ostrich owl parrot peacock pelican penguin pigeon raven robin seagull sparrow stork swallow swan turkey "
    "vulture woodpecker",
    "insect": "ant bee beetle butterfly caterpillar cricket dragonfly fly grasshopper ladybug mosquito moth scorpion "
    "spider wasp",
    "fish": "carp crab dolphin eel lobster octopus oyster salmon sardine shark shrimp squid trout tuna whale",
    "food": "almond apple apricot bacon banana bean biscuit bread broccoli butter cabbage cake carrot cauliflower "
    "cheese cherry chocolate coconut cookie corn cucumber egg garlic grape ham honey lemon lettuce lime mango "
    "melon mushroom noodle nut olive onion orange pancake pasta peach peanut pear pepper pie pineapple pizza "
    "plum popcorn potato pudding pumpkin radish raspberry rice salad sandwich sausage soup spinach strawberry "
    "tomato turnip walnut",
    "vehicle": "airplane ambulance bicycle boat bulldozer bus canoe car ferry helicopter kayak lorry minivan "
    "motorcycle raft rocket sailboat scooter ship sled submarine taxi tractor train tram trolley truck van wagon yacht",
    "plant": "bamboo bush cactus clover daisy fern flower grass ivy lily maple moss oak orchid palm pine poppy rose "
    "sunflower tree tulip violet willow",
    "clothes": "apron belt blouse boot bracelet cap cloak coat dress glove hat helmet jacket jeans mitten necklace "
    "pajamas pants robe sandal scarf shirt shoe skirt slipper sock sweater tie trousers uniform vest",
    "building": "barn bridge cabin castle cathedral church cottage factory garage hospital hotel house hut library "
    "lighthouse mill museum palace prison school shop skyscraper stadium temple theater tower tunnel warehouse",
    "body part": "ankle arm back beard cheek chest chin ear elbow eye finger foot forehead hair hand heel knee leg lip "
    "mouth neck nose shoulder stomach thumb toe tongue tooth wrist",
    "furniture": "armchair bed bench bookcase cabinet chair couch cradle cupboard desk drawer dresser mattress shelf "
    "sofa stool table wardrobe",
    "tool": "axe chisel crowbar drill hammer hatchet knife ladder pliers rake ruler saw scissors screwdriver shovel "
    "sickle spade tongs wrench",
    "household": "basket blanket bottle bowl broom bucket candle clock comb cup fork kettle key lamp mirror "
    "mug pan pillow plate pot soap spoon teapot towel umbrella vase",
    "instrument": "accordion banjo cello clarinet drum flute guitar harp oboe piano saxophone trombone trumpet tuba "
    "violin xylophone",
    "weather": "blizzard cloud fog hail hurricane lightning rain rainbow snow storm thunder tornado wind",
}

FILES = (
    "art computers cookie definitions education food fortunes humorists kids law linux literature magic medicine "
    "miscellaneous news people pets platitudes riddles science songs-poems sports startrek tao wisdom work"
)
TEXTS = tuple(FILES.split())
SENTENCES, SEQUENCES = 4_100, 460  # an eighth of them is sealed by name
# Beginnings of words that are kept out of what is spoken.
RUDE = re.compile(
    r"\b(anal|anus|arse|ass(es|hole\w*)?$|bastard|bitch|bloody|blowjob|boob|breast|bugger|cock|coon|crap|cunt|damn"
    r"|dick|dildo|dyke|erecti|erotic|fag|fart|fuck|genital|goddam|gook|hell\b|heroin|hitler|homo|hook(er|ers)\b|incest"
    r"|jew|kike|kill|lesb|masturb|molest|murder|naked|nazi|negr|nigg|nipple|nude|orgasm|orgy|paedo|pedo|penis|piss"
    r"|porn|prick|prostitut|pussy|queer|rape|rapi(ng|st)|rectum|retard|semen|sex|shit|slave|slut|sodom|sperm|spic\b"
    r"|suicid|testic|tits?\b|tranny|turd|vagina|virgin|wank|whore|wop)"
)


def draw(key: str) -> random.Random:
    """Chance that depends on a name alone, the same on every machine."""
    return random.Random(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16))


@cache
def withheld() -> frozenset[str]:
    """Known objects that belong to validation or test, as words: no sentence may say them."""
    known = {item_of(name): name for names in OBJECTS.values() for name in names.split()}
    known |= {item: item for item in OF_ITEM}
    held = {item: name for item, name in known.items() if held_out(f"item:{item}:English") != "train"}
    return frozenset((*held, *held.values()))


def clauses(text: str, vocabulary: frozenset[str]) -> Iterator[str]:
    """Clauses of a file of fortunes that can be spoken as they stand.

    Args:
        text: Fortunes, a ``%`` between them; who said one comes after a line's ``--``.
        vocabulary: Words that may occur, in lower case.

    Yields:
        2 to 9 words each, in lower case: letters, apostrophes and single spaces.
    """
    for fortune in re.split(r"^%.*$", text, flags=re.MULTILINE):
        said = " ".join(re.split(r"^\s+--", fortune, flags=re.MULTILINE)[0].split())
        for clause in re.split(r"[.!?;:,()\[\]\"]+(?=\s|$)|\s[-(\[\"]+|[\"]|--|^[\"(\[]", said):
            words = (clause or "").strip(" '").split()
            if not 2 <= len(words) <= 9 or not all(re.fullmatch(r"[A-Za-z]+('[a-z]+)?", word) for word in words):
                continue
            if any(word.isupper() and word not in ("A", "I", "O") for word in words):
                continue  # acronyms, shouting
            low = [word.lower() for word in words]
            if all(word in vocabulary and (len(word) > 1 or word in "aio") for word in low):
                yield " ".join(low)


def sentences(root: Path) -> list[str]:
    """What is said to align speech with text: clauses of fortunes, and a tenth of words without sense."""
    try:
        listed = (root / WORDS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AudioError(f"no {root / WORDS}: is the Debian package wamerican installed?") from error
    vocabulary = frozenset(word.lower() for word in listed)
    found: set[str] = set()
    for name in TEXTS:
        path = root / FORTUNES / name
        if not path.is_file():
            raise AudioError(f"no {path}: are the Debian packages fortunes and fortunes-min installed?")
        found.update(clauses(path.read_text(encoding="utf-8", errors="replace"), vocabulary))
    plain = sorted({word for word in listed if re.fullmatch(r"[a-z]{3,9}", word)})
    sequences = (draw(f"synthetic:sequence:{number}") for number in range(2 * SEQUENCES if len(plain) > 3 else 0))
    strung = list(dict.fromkeys(" ".join(chance.sample(plain, chance.randint(2, 4))) for chance in sequences))
    unspoken = withheld()

    def decent(text: str) -> bool:
        words = text.split()
        forms = {form for word in words for form in (word, word.removesuffix("'s"), word.removesuffix("s"))}
        return not any(RUDE.search(word) for word in words) and unspoken.isdisjoint(forms)

    shuffled = sorted(found, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    return [*filter(decent, shuffled)][:SENTENCES] + [*filter(decent, strung)][:SEQUENCES]


def make(voice: Voice, text: str, *, english: str, code: str = "", item: str = "", category: str = "") -> Clip:
    """The clip of a text and a voice."""
    # With a `!`, as of an archive's member: there is no file of that name to be hashed.
    key = f"synthetic/{voice.engine}/{voice.name}!{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Clip(
        key=key,
        package=voice.engine,
        kind="speech",
        content=f"item:{item}" if item else "",
        voice=f"synthetic/{voice.engine}-{voice.name}",
        gender=voice.gender,
        language=voice.language,
        text=text,
        english=english,
        code=code,
        item=item,
        category=category,
        licence=LICENCES[voice.engine],
    )


def code_clips() -> Iterator[Clip]:
    """Numbers, letters and the spelling alphabet by all English voices, numbers to twenty by the others."""
    english = NUMBERS["English"]
    said = {code: (word, word) for code, word in english.items()}
    said |= {letter: (letter, letter.lower()) for letter in sorted(LETTERS)}
    said |= {word: (word, word) for word in NATO.values()}
    for voice in ENGLISH:
        for code, (text, gloss) in said.items():
            yield make(voice, text, english=gloss, code=code)
    for voice in FOREIGN:
        if voice.language in COUNTS:
            counts = dict(zip(map(str, range(21)), COUNTS[voice.language].split(), strict=True))
        else:
            counts = {code: word for code, word in NUMBERS[voice.language].items() if int(code) <= 20}
        for code, text in counts.items():
            yield make(voice, text, english=english[code], code=code)


def item_clips(voices: Sequence[Voice] = ENGLISH, each: int = 3) -> Iterator[Clip]:
    """Names of objects, each by a few voices; those held out by their content are left out."""
    for category, names in OBJECTS.items():
        for name in names.split():
            item = item_of(name)
            if item and held_out(f"item:{item}:English") == "train":
                for voice in draw(f"synthetic:item:{name}").sample(voices, each):
                    yield make(voice, name, english=name, item=item, category=category_of(item) or category)


def index(root: Path) -> Iterator[Clip]:
    """All utterances, sorted by key; none of them is ever in validation or test."""
    clips: dict[str, Clip] = {}
    for clip in (*code_clips(), *item_clips()):
        clips.setdefault(clip.key, clip)  # `hotel` is a code word before it is a building
    weights = [2 if voice.engine == "flite" else 1 for voice in ENGLISH]  # flite is the more human
    for text in sentences(root):
        clip = make(draw(f"synthetic:voice:{text}").choices(ENGLISH, weights)[0], text, english=text)
        clips.setdefault(clip.key, clip)
    yield from (clips[key] for key in sorted(clips))


def command(clip: Clip, path: str) -> list[str]:
    """The command line that speaks a clip to a wav file, at a speed that follows from its key.

    Example:
        >>> command(make(Voice("espeak-ng", "en-gb", "man"), "seven", english="seven", code="7"), "out.wav")
        ['espeak-ng', '-v', 'en-gb', '-s', '155', '-w', 'out.wav', '--', 'seven']
    """
    engine, voice = clip.key.removeprefix("synthetic/").split("!")[0].split("/")
    speed = draw(f"synthetic:speed:{clip.key}").random()
    text = " ".join(map(PINYIN.__getitem__, clip.text)) if clip.language == "Mandarin" else clip.text
    text = RESPELT.get(text, text)
    if engine == "flite":
        stretch = f"duration_stretch={0.85 + 0.35 * speed:.2f}"
        return ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", path]
    return ["espeak-ng", "-v", voice, "-s", str(130 + round(60 * speed)), "-w", path, "--", text]


def read(root: Path, clip: Clip) -> np.ndarray:
    """Speaks a clip with the engine on the path; the root does not matter."""
    with tempfile.TemporaryDirectory(prefix="synthetic-") as folder:
        path = str(Path(folder) / "spoken.wav")
        line = command(clip, path)
        try:
            done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
        except FileNotFoundError as error:
            raise AudioError(f"{line[0]} is not here: is the Debian package {clip.package} installed?") from error
        except subprocess.TimeoutExpired as error:
            raise AudioError(f"{line[0]} took more than {SECONDS} s for {clip.key}") from error
        if done.returncode:
            raise AudioError(f"{line[0]} failed on {clip.key} (exit {done.returncode}): {done.stderr.strip()[-200:]}")
        return read_audio(path, SAMPLING_RATE)


PACKAGES = {
    "flite": "2.2-5",
    "espeak-ng": "1.51+dfsg-10+deb12u2",
    "fortunes": "1:1.99.1-7.3",
    "fortunes-min": "1:1.99.1-7.3",
    "wamerican": "2020.12.07-2",
}
SOURCE = Source("synthetic", PACKAGES, index, read)
