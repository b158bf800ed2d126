"""Small trees of files in the layouts of AudioMarathon and MMAU-Pro: their names, fields and nesting, with our
audio."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
Clip = Callable[[], np.ndarray]


def noise(seconds: float = 0.5) -> Clip:
    """Different noise each time."""
    random = np.random.default_rng(0)
    return lambda: random.normal(scale=0.1, size=int(RATE * seconds)).astype(np.float32)


def write_audiomarathon(root: Path, clip: Clip | None = None) -> dict[str, list[str]]:
    """Two samples of each of the ten tasks.

    With their odd cases: answers as letters, lower-case letters, words and options' texts; options as fields, a list
    and an object; the list at the top or under "tasks"; audio beside the list and in wav/; transcripts in their own
    files and in a shared one.

    Returns:
        The right answers of each task, in order, as they are compared: letters, transcripts, and texts of age groups.
    """
    clip = clip or noise()

    def audio(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(), RATE)

    def listed(path: Path, rows: Any, audio_folder: Path | None = None) -> None:
        for row in rows["tasks"] if isinstance(rows, dict) else rows:
            audio((audio_folder or path.parent) / (row.get("path") or row["audio_path"]))
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    def choices(*texts: str) -> dict[str, str]:
        return {f"choice_{letter}": text for letter, text in zip("abcde", texts, strict=False)}

    listed(
        root / "subsetSLUE" / "merged_audio_data.json",
        [
            {
                "path": f"merged/{i}.wav", "task_name": "named_entity_counting", "dataset_name": "slue_voxpopuli",
                "question": "How many places are named?", **choices("one", "two", "three", "four"), "answer_gt": answer,
                "entity_count": 2, "entity_types": ["PLACE"], "source_count": 9, "audio_duration_info": "170 s",
                "source_folder": "dev", "source_file": f"{i}.tsv", "uniq_id": i,
            }
            for i, answer in enumerate("BD")
        ],
    )  # fmt: skip
    listed(
        root / "subsetrace_audio" / "race_benchmark.json",
        [
            {
                "audio_path": f"test/{level}/{i}.wav", "question": "Where did they meet?", "answer": answer,
                "options": ["In a park.", "At school.", "On a train.", "In a shop."], "article_id": f"{level}{i}",
                "question_idx": i,
            }
            for i, (level, answer) in enumerate((("high", "A"), ("middle", "C")))
        ],
    )  # fmt: skip
    chapter = root / "subsetlibrispeech-long" / "test-clean" / "61" / "70968"
    for name in ("61-70968-0001", "61-70968-0010"):
        audio(chapter / f"{name}.flac")
    (chapter / "61-70968-0001.txt").write_text("HE BEGAN A CONFUSED COMPLAINT\n", encoding="utf-8")
    (chapter / "61-70968.trans.txt").write_text(
        "61-70968-0001 NOT THIS ONE\n61-70968-00101 NOR THIS\n61-70968-0010 GIVE NOT SO EARNEST A MIND\n",
        encoding="utf-8",
    )
    listed(
        root / "subsetDESED" / "DESED_dataset" / "concatenated_audio" / "desed_sound_event_detection_task.json",
        {
            "tasks": [
                {
                    "path": f"{i}.wav", "task_type": "detection", "question": "Which sound is heard?",
                    "choices": {"B": "Running water", "A": "Dog", "D": "Alarm bell ringing", "C": "Speech"},
                    "answer_gt": answer, "all_events": ["Dog"], "primary_event": "Dog", "correct_event": "Dog",
                    "path_extracted_event": "Dog", "uniq_id": i,
                }
                for i, answer in enumerate("AD")
            ],
            "task_info": {"total": 2},
        },
    )  # fmt: skip
    music = root / "subsetGTZAN" / "concatenated_audio"
    music.mkdir(parents=True)
    listed(
        music / "music_genre_classification_meta.json",
        [
            {
                "path": f"blues/{i}.wav", "question": "What is the genre of this music?", "answer_gt": answer,
                **choices("blues", "classical", "rock", "jazz"), "genre_label": "blues",
            }
            for i, answer in enumerate("AC")
        ],
        music / "wav",
    )  # fmt: skip
    for kind in ("real", "fake"):
        audio(root / "subsetHAD" / "concatenated_audio" / kind / f"HAD_{kind}_1.wav")
    listed(
        root / "subsetTAU" / "concatenated_resampled" / "acoustic_scene_task_meta.json",
        [
            {
                "path": f"airport/{i}.wav", "scene_label": "airport", "question": "What is the acoustic scene?",
                **choices("Airport - Indoor", "Bus - Transportation", "Park - Outdoor", "Tram - Transportation"),
                "answer_gt": answer,
            }
            for i, answer in enumerate(("B", "park - outdoor"))
        ],
    )  # fmt: skip
    listed(
        root / "subsetVESUS" / "audio_emotion_dataset.json",
        [
            {
                "path": f"{i}/angry.wav", "person_id": i, "emotion_label": "angry", "question": "What emotion is it?",
                **choices("angry", "happy", "sad", "fearful"), "answer_gt": answer,
            }
            for i, answer in enumerate("aD")
        ],
    )  # fmt: skip
    voices = root / "subsetVoxCeleb" / "concatenated_audio"
    voices.mkdir(parents=True)
    listed(
        voices / "gender_id_task_meta.json",
        [
            {
                "path": f"id{i}.wav", "speaker_id_original": f"id{i}", "question": "Is it male or female?",
                **choices("male", "female"), "answer_gt": answer,
            }
            for i, answer in enumerate(("Male", "Female "))
        ],
        voices / "wav",
    )  # fmt: skip
    groups = ("Young Adult (18-30)", "Adult (31-45)", "Middle-aged (46-60)", "Senior (61-75)", "Elderly (76+)")
    # No wav/ folder: beside the list.
    ages = root / "subsetVoxCeleb_age" / "concatenated_audio"
    ages.mkdir(parents=True)
    listed(
        ages / "age_classification_task_meta.json",
        [
            {
                "path": f"id{i}.wav", "speaker_id_original": f"id{i}", "speaker_age": 25,
                "question": "What is the age group?", **choices(*(groups if i else groups[::-1])),
                "answer_gt": groups[1],
            }
            for i in range(2)
        ],
    )  # fmt: skip
    return {
        "ser": ["B", "D"], "scr": ["A", "C"],
        "asr": ["he began a confused complaint", "give not so earnest a mind"],
        "sed": ["A", "D"], "mc": ["A", "C"], "sd": ["A", "B"], "asc": ["B", "C"], "er": ["A", "D"], "sgr": ["A", "B"],
        "sar": [groups[1], groups[1]],
    }  # fmt: skip


MMAU_CATEGORIES = (
    "speech", "sound", "music", "sound_music", "sound_speech", "music_speech", "sound_music_speech", "spatial_audio",
    "voice_chat", "multi",
)  # fmt: skip


def mmau_rows() -> list[dict[str, Any]]:
    """A question of each category, one of two recordings, and one that has a category of choices but none."""
    rows: list[dict[str, Any]] = []

    def add(category: str, **fields: Any) -> None:
        number = len(rows)
        rows.append(
            {
                "id": f"{number:08x}", "audio_path": [f"data/{number}.wav"], "question": "What is heard?",
                "answer": "a dog",
                "choices": [], "length_type": "short", "perceptual_skills": ["Event recognition"],
                "reasoning_skills": [],
                "category": category, "transcription": None, "task_classification": None, "task_identifier": None,
                "kwargs": None, "sub-cat": None, **fields,
            }
        )  # fmt: skip

    for category in MMAU_CATEGORIES:
        options = ["a cat", "a dog", "rain"] if category != "speech" else ["a dog"] + [f"word {i}" for i in range(9)]
        paths = ["data/0.wav", "/data/1.wav"] if category == "multi" else [f"data/{len(rows)}.wav"]
        add(category, choices=options, audio_path=paths)
    add("open", answer="The dog barks twice")
    add("sound", question="A closed category without choices?", choices=None)
    add(
        "instruction following", question="Say in at most three words what is heard.", answer=None, choices=None,
        task_identifier="Number Words (at most)", kwargs={"N": 3, "keyword": None},
    )  # fmt: skip
    return rows


def write_mmau_pro(root: Path, form: str = "parquet", clip: Clip | None = None) -> list[dict[str, Any]]:
    """The rows of :func:`mmau_rows` and their audio.

    Args:
        root: Where to.
        form: ``"parquet"``, ``"jsonl"`` or ``"json"``.
        clip: Makes audio.
    """
    clip, rows = clip or noise(), mmau_rows()
    for row in rows:
        for name in row["audio_path"]:
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, clip(), RATE)
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), root / "test.parquet")
    elif form == "jsonl":
        (root / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    else:
        (root / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    return rows
