"""English names and categories of the objects that clips name, alike in all sources."""

from __future__ import annotations

import re

__all__ = ["category_of", "item_of"]

# Stem of a file -> the object, where neither the stem nor its description gives it; "" where no object is named.
NAMES = {
    "1_mercury": "mercury",
    "2_venus": "venus",
    "3_earth": "earth",
    "4_mars": "mars",
    "5_jupiter": "jupiter",
    "6_saturn": "saturn",
    "7_uranus": "uranus",
    "8_neptune": "neptune",
    "9_pluto": "pluto",
    "7spoke256": "wheel",
    "adeenia": "desert rose",
    "anemone": "anemone",
    "anemone_red": "anemone",
    "apollo_lander": "moon lander",
    "apricot_whole": "apricot",
    "ballpointpen": "pen",
    "biro": "pen",
    "balloon360": "hot-air balloon",
    "bathyscape": "submarine",
    "birch": "birch",
    "blue-and-yellowflag": "flag",
    "bluegroper": "groper",
    "blankroadsign": "road sign",
    "bluejeans1": "jeans",
    "bradley": "",
    "bread": "bread",
    "broccoli": "broccoli",
    "brownslug": "slug",
    "bunny-egg": "bunny",
    "camera": "camera",
    "candy_cane_photo_1": "candy cane",
    "candy_cane_photo_2": "candy cane",
    "cave_entrance": "cave",
    "cep": "mushroom",
    "cep-2": "mushroom",
    "cherry_stella": "cherry",
    "cherinoya": "cherimoya",
    "chick-hatched": "chick",
    "chick-in-egg": "chick",
    "chinesejunk": "ship",
    "christmas_pudding": "christmas pudding",
    "cityhouse": "house",
    "clotheshanger": "hanger",
    "clothes_iron": "iron",
    "clover": "clover",
    "coffeecup": "coffee",
    "compact_disc": "compact disc",
    "corn": "corn",
    "cheese": "cheese",
    "cylinder": "gas cylinder",
    "docks": "docks",
    "dead_end_sign": "dead end",
    "digitalthermometer": "thermometer",
    "dslr_camera": "camera",
    "double_decker_bus": "bus",
    "drum_tomtom_floor": "drums",
    "dreydl-gimmel": "",
    "dreydl-hay": "",
    "dreydl-nun": "",
    "dreydl-shin": "",
    "eddiecopter": "helicopter",
    "eggplant": "eggplant",
    "europeanbear": "bear",
    "explosion": "",
    "expresso": "coffee",
    "f1_car": "race car",
    "final-roll-call": "",
    "fireengine": "fire truck",
    "flower9": "flower",
    "football_helmet_front": "",
    "football_helmet_side": "",
    "fountain": "fountain",
    "garbagecan": "trash can",
    "german_christmas_tool": "",
    "german_christmas_toy": "toy",
    "girl_in_wheelchair": "girl",
    "give_way_sign": "",
    "glass": "glass",
    "globe": "globe",
    "gnu-baby": "gnu",
    "gnu-baby-stand": "gnu",
    "gnu_baby": "gnu",
    "gnu_baby_stand": "gnu",
    "grannysmith": "doll",
    "greenhat": "hat",
    "hair_manga": "",
    "hardhat": "hard hat",
    "head": "head",
    "heron_greatblue": "heron",
    "heron_greatblue_flying": "heron",
    "holly_leaves": "holly",
    "home_compost_bin": "compost bin",
    "hoverfly": "hoverfly",
    "hunter": "house",
    "infantry-stryker": "",
    "inkjet_printer": "printer",
    "iso_lorry4": "dump truck",
    "knitting": "knitting",
    "laptop": "laptop",
    "laser_printer": "printer",
    "lavender": "lavender",
    "leafrake": "rake",
    "lettuce": "lettuce",
    "loaf_of_bread": "bread",
    "mallet_metal": "mallet",
    "man_in_suit": "man",
    "menorah": "menorah",
    "mince_pie": "mince pie",
    "mobile": "telephone",
    "moon_crescent": "moon",
    "mortarboard": "hat",
    "mushrooms": "mushroom",
    "old_naval_shell": "",
    "orange_seville": "orange",
    "painttube": "paint",
    "pasta_pot": "pot",
    "pen_dryerase": "marker",
    "phone": "telephone",
    "pigface": "flower",
    "pinkhome": "house",
    "pitcher_small": "pitcher",
    "plyers": "pliers",
    "rabbit-2": "rabbit",
    "recyclingbox": "recycling box",
    "recyclingbox2": "recycling box",
    "red_highheel": "shoe",
    "redlettuce": "lettuce",
    "rhino_black": "rhino",
    "roast_turkey": "",
    "rugby_goal_posts": "goal posts",
    "ruins": "castle",
    "school_sign": "",
    "schoolbus": "bus",
    "sedan_police": "",
    "shamrock": "shamrock",
    "sheep_lamb": "lamb",
    "spacewalk": "astronaut",
    "stethoscope": "stethoscope",
    "strawberry2": "strawberry",
    "stop": "stop sign",
    "stoplight_01_red": "traffic light",
    "stoplight_02_yellow": "traffic light",
    "stoplight_03_green": "traffic light",
    "sword_in_the_stone": "sword",
    "sword_stone": "sword",
    "t_tshirt": "t shirt",
    "tanker": "tanker",
    "tender": "",
    "train_sign": "",
    "terex": "dump truck",
    "toilet": "toilet",
    "top_skirt": "skirt",
    "tower_flag_red": "tower",
    "tower_round_flag": "tower",
    "towtruck": "tow truck",
    "tomato": "tomato",
    "tree336": "",
    "trash_can": "trash can",
    "tux": "penguin",
    "tux_tractor": "tractor",
    "uk_post_box": "mailbox",
    "voyager2": "space probe",
    "walnut_shelled": "walnut",
    "wrapped_chocolate_easter_egg": "chocolate egg",
    "wrapped_chocolate_easter_egg_2": "chocolate egg",
    "wheelie_bin": "trash can",
    "whitestar": "petunia",
    "whitestar-petunia": "petunia",
    "wildboar": "wild boar",
    "woman_dancing": "woman",
    "york": "",  # a breed of dogs
    "woman_police_officer": "police officer",
    "woman_police_officer2": "police officer",
    "ww2_german_gun": "",
    "xing_ped": "",
    "yield": "",
    "roundabout": "roundabout",
    "recycle": "",
}

# Words that tell one picture of an object from another.
DROPPED = (
    "a an the some pair of bunch cluster head string cup very our another two colorful red green blue yellow "
    "white brown black pink grey purple silver golden singing happy sleeping sitting little big small large tiny "
    "toy old modern left right lit floppy-eared fuji granny smith sierra beauty sliced sweet ripe electric "
    "adjustable plumber's open closed european sumatran tamworth edward medieval swiss wooden huge plastic "
    "feathered bolted emperor cemetery bell bottom spiny old-fashioned digital long sedan vw steam magellanic "
    "helmeted albino monarch pattypan chile singing dream garden"
)
DROP = frozenset(DROPPED.split())

SAME = {
    "balloons": "balloon",
    "bean": "beans",
    "biscuit": "cookie",
    "bunny": "rabbit",
    "couch": "sofa",
    "drake": "duck",
    "pants": "trousers",
    "sea gull": "gull",
    "seagull": "gull",
    "x-cookie": "cookie",
    "rhinoceros": "rhino",
    "tux airways": "airplane",
    "mustang airplane": "airplane",
    "beetle": "car",
    "female head": "head",
    "cemetery marker": "grave",
    "monument stone": "grave",
    "ginger 'root'": "ginger",
    "poisonous lionfish": "lionfish",
    "indian blackbuck": "blackbuck",
    "freshwater mussel": "mussel",
    "full moon": "moon",
    "red-nosed reindeer": "reindeer",
    "mercury thermometer": "thermometer",
    "walnut sailboat": "sail boat",
    "cep": "mushroom",
    "birds": "bird",
    "candles": "candle",
    "arrows": "arrow",
    "apples": "apple",
    "fries": "french fries",
    "spectacles": "glasses",
    "eyeglasses": "glasses",
    "plane": "airplane",
    "fireengine": "fire truck",
    "fire engine": "fire truck",
    "lorry": "truck",
    "cherries": "cherry",
    "bananas": "banana",
    "blueberries": "blueberry",
    "flowers": "flower",
    "grape": "grapes",
    "motor bike": "motorcycle",
    "kiwifruit": "kiwi",
    "avocado fruit": "avocado",
    "cherimoya fruit": "cherimoya",
    "garlic bulb": "garlic",
    "hippopotamus": "hippo",
    "christmas hat": "hat",
    "elf's hat": "hat",
    "wizard's hat": "hat",
    "present": "gift",
    "steam locomotive": "locomotive",
    "gravestone": "grave",
    "headstone": "grave",
    "tombstone": "grave",
    "grave marker": "grave",
    "drum kit": "drums",
    "drum": "drums",
    "microwave oven": "microwave",
    "tealight candle": "candle",
    "hibiscus flower": "hibiscus",
    "palmtree": "palm tree",
    "garbage can": "trash can",
    "baseball cap": "cap",
    "classical guitar": "guitar",
    "bass guitar": "guitar",
    "trophy cup": "trophy",
    "measuring tape": "tape measure",
    "mountaingoat": "mountain goat",
    "colorful rooster": "rooster",
    "sphynx": "sphinx",
    "brocolli": "broccoli",
    "sherif": "sheriff",
    "whitch": "witch",
    "dowe": "dove",
    "fir tree": "christmas tree",
}
"""Other names of an object, so that it goes to one split whatever the source calls it."""

CATEGORIES = {
    "animals/birds": "bird",
    "animals/insects": "insect",
    "animals/fish": "fish",
    "animals/shellfish": "fish",
    "animals": "animal",
    "clothes": "clothes",
    "food": "food",
    "hobbies/music": "instrument",
    "household/tools": "tool",
    "household/arttools": "tool",
    "household": "household",
    "hobbies": "household",
    "medical": "household",
    "military": "vehicle",
    "naturalforces": "weather",
    "people/body_parts": "body part",
    "people": "person",
    "plants": "plant",
    "seasonal": "holiday",
    "space": "space",
    "sports": "sport",
    "symbols": "symbol",
    "town/flags": "symbol",
    "town/roadsigns": "symbol",
    "town": "building",
    "vehicles": "vehicle",
}

# Of single objects, where the folder misleads or a source has none.
OF_ITEM = {
    item: category
    for category, items in {
        "symbol": "arrow",
        "animal": "snail deer ferret iguana chimpanzee otter hedgehog porcupine rhino python "
        "camel donkey elephant giraffe lion monkey rabbit reindeer turtle bat cat dog tiger horse pig "
        "sheep mouse frog koala jaguar raccoon yak zebra newt dolphin whale",
        "bird": "crow duck guinea_fowl heron pelican flamingo quetzal emu pheasant goose albatross sparrow stork "
        "crane "
        "birds bluebird chick owl dove bird rooster vulture quail penguin eagle-owl booby wood_grouse iora gull",
        "insect": "butterfly hoverfly grasshopper ladybug spider weevil blister_beetle moth",
        "fish": "fish urchin angelfish shark xiphias pike misgurnus ruffe squid",
        "body part": "ear eye eyebrow hair mouth moustache nose arm foot hand head body wing skull",
        "clothes": "coat hat shoe shorts skirt glasses sunglasses tie bow boot earring watch badge glove",
        "vehicle": "helicopter locomotive "
        "car bicycle train rocket cart caravan excavator trailer wagon tractor truck tipper ufo satellite "
        "unicycle airplane motorcycle fire_truck steam_train moonwalker wheel hot-air_balloon",
        "building": "bridge column pyramid arch well house school shop tunnel hotel fence barrier igloo lighthouse "
        "sphinx road",
        "person": "girl man woman boy cyclist astronaut fisherman mechanic fireman guitarist paratrooper angel "
        "alien monster",
        "plant": "daffodil clover shamrock flower palm_tree grass tree mistletoe",
        "food": "cherry kiwi french_fries uszka durian sorrel eclair yogurt vegetables jackfruit lasagna noodle "
        "gooseberry plum "
        "anchovy bacon broccoli cheese cucumber mushroom olive onion oregano pepper pepperoni pineapple salami "
        "tomato apple egg donut ice_cream hot_dog candy_cane christmas_pudding mince_pie lettuce chocolate_egg "
        "eggplant strawberry watermelon",
        "instrument": "trumpet recorder zurna hand_organ hang topshuur accordion flute harp whistle xylophone guitar",
        "space": "moon planet star earth comet falling_star sun",
        "weather": "snowflake fire smoke lightning_bolt",
        "sport": "volleyball football skateboard ice_skate hockey ball volley_net",
        "tool": "pen paint magnet magnifying_glass rake sword bullet",
        "household": "kite jar vase doll clock zipper "
        "cigar letter umbrella candle key plate vase teacup goblet flask ladder",
        "holiday": "garland snowman gift christmas_tree",
    }.items()
    for item in (name.replace("_", " ") for name in items.split())
}

ITEM_WORDS = 2


def item_of(stem: str, description: str = "") -> str:
    """The object that is named.

    Args:
        stem: Name of the file or sound, e.g. ``"cow"`` or ``"loaf_of_bread"``.
        description: What is said of it in English, if known, e.g. ``"A brown hat."``.

    Returns:
        One or two words in lower case, singular, without colour and size; empty if no object is named.

    Example:
        >>> item_of("brown_hat", "A brown hat.")
        'hat'
    """
    stem = stem.lower()
    if stem in NAMES:
        return NAMES[stem]
    text = (description or stem.replace("_", " ")).lower().replace("’", "'")
    text = re.split(r"[.!?—(,]", text)[0].replace("“", "").replace("”", "").strip(' "')
    whole = " ".join(word for word in text.split() if word not in ("a", "an", "the", "some"))
    if whole in SAME:
        return SAME[whole]
    kept = [word for word in text.split() if word not in DROP] or whole.split()
    item = " ".join(kept)
    return SAME.get(item, item) if len(kept) <= ITEM_WORDS else ""


def category_of(item: str, folder: str = "") -> str:
    """Category of an object, by itself or by the folder it lies in; empty if neither tells.

    Example:
        >>> category_of("cow", "animals/mammals/bovines")
        'animal'
    """
    if item in OF_ITEM:
        return OF_ITEM[item]
    return next((name for start, name in CATEGORIES.items() if folder.startswith(start)), "")
