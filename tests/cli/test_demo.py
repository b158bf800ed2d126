"""``headrouter-pl demo`` on a tiny model, and what it says of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pocket import build, make_processor

from headrouter_pl import LALMModule
from headrouter_pl.cli import demo as command
from headrouter_pl.cli import main
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule, demo_scenes
from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.demo_scenes import DemoQuestion, DemoScene
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import pocket_weights
from headrouter_pl.models.pocket import CHAT_TEMPLATE, PocketError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("matplotlib")
torch.set_num_threads(1)

LIMIT = 3  # seconds that the processor takes
NEW_TOKENS = 4
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A tiny model that speaks words "w4" ..., in the place of the trained pocket model."""
    # The template without line ends and names of roles stuck to tokens: words stand apart.
    template = CHAT_TEMPLATE.replace("'<sound>'", "' <sound> '").replace("+ '\\n'", "+ ' '")
    decoder, processor = build(), make_processor(template)
    processor.max_audio_len = LIMIT
    monkeypatch.setattr(pocket_weights, "load_trained_pocket", lambda: (decoder, processor))
    monkeypatch.setattr(command, "_NEW_TOKENS", NEW_TOKENS)
    return decoder, processor


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a model or fetches a recording."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not before the input is known to be good")

    monkeypatch.setattr(pocket_weights, "load_trained_pocket", fail)
    monkeypatch.setattr(demo_scenes, "demo_scenes", fail)


def noise(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(0).normal(scale=0.1, size=shape).astype(np.float32)


def cells(out: str, first: str) -> list[list[str]]:
    """Rows of the table whose first title is given."""
    lines = iter(out.splitlines())
    next(line for line in lines if line.startswith(f"| {first}"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


class TestOwnRecording:
    @pytest.mark.parametrize(
        ("name", "rate", "channels"), [("a.wav", 16_000, 1), ("b.wav", 44_100, 2), ("c.flac", 8_000, 1)]
    )
    def test_any_format(
        self, name: str, rate: int, channels: int, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        soundfile.write(tmp_path / name, noise(2.0, rate, channels), rate)
        main([
            "demo", "--audio", str(tmp_path / name), "--prompt", "w40 w41", "--keep_ratio", "0.4",
            "--output", str(tmp_path / "new" / "kept.png"),
        ])  # fmt: skip
        out = capsys.readouterr().out
        assert f"{name}: 2.0 s." in out
        full, pruned = cells(out, "keep ratio")
        assert full[0] == "unpruned"
        assert full[2] == "50"  # 25 tokens a second
        assert pruned[0] == "0.4"
        assert pruned[2] == "20"
        assert float(pruned[5]) > 0
        assert (tmp_path / "new" / "kept.png").read_bytes().startswith(PNG)

    def test_answers_are_those_of_the_model(
        self, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000, subtype="FLOAT")
        given = ["--audio", str(tmp_path / "a.wav"), "--prompt", "w40", "--keep_ratio", "[1.0, 0.2, 0.2]"]
        main(["demo", *given, "--output", str(tmp_path / "kept.png")])
        rows = cells(capsys.readouterr().out, "keep ratio")
        assert [row[0] for row in rows] == ["unpruned", "1", "0.2"]
        assert rows[0][1] == rows[1][1] == answer(model, noise(1.0)[:, 0], "w40")
        assert len(rows[0][1].split()) <= NEW_TOKENS

    def test_too_long_is_cut_and_said(self, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        soundfile.write(tmp_path / "long.wav", noise(LIMIT + 1.5, 8_000), 8_000)
        given = ["--audio", str(tmp_path / "long.wav"), "--prompt", "w40", "--keep_ratio", "0.5"]
        main(["demo", *given, "--output", str(tmp_path / "kept.png")])
        out = capsys.readouterr().out
        assert "long.wav: 4.5 s." in out
        assert "hears the first 3 s; the last 1.5 s are left out." in out
        assert cells(out, "keep ratio")[0][2] == str(25 * LIMIT)

    def test_silence_is_audio(self, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
        main([
            "demo", "--audio", str(tmp_path / "silent.wav"), "--prompt", "w40", "--output", str(tmp_path / "k.png"),
        ])  # fmt: skip
        assert [row[2] for row in cells(capsys.readouterr().out, "keep ratio")] == ["25", "18", "12", "8"]


@pytest.mark.usefixtures("untouched")
class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no audio file at"),
            (b"", "cannot be read as audio"),
            (b"These are words, not sounds.\n" * 100, "cannot be read as audio"),
            (noise(0.0), "is empty: no samples"),
            (noise(0.05), "is 0.050 s long, expected 0.1 s at least"),
            (np.full((1600, 1), np.nan, np.float32), "NaN or infinite"),
        ],
    )
    def test_a_file_that_cannot_be_asked_about(self, content: Any, message: str, tmp_path: Path) -> None:
        path = tmp_path / "my.wav"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            soundfile.write(path, content, 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=message) as caught:
            main(["demo", "--audio", str(path), "--prompt", "What is said?"])
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--prompt", "What is said?"], "--audio and --prompt go together"),
            (["--audio", "my.wav"], "--audio and --prompt go together"),
            (["--audio", "my.wav", "--prompt", "What?", "--questions", "2"], "not for --audio"),
            (["--questions", "0"], "got questions=0, expected 1 or more"),
            (["--keep_ratio", "0"], "got keep_ratio=0"),
            (["--keep_ratio", "[0.5, 1.5]"], r"got keep_ratio=\[0.5, 1.5\], expected shares above 0, up to 1"),
            (["--keep_ratio", "[]"], "got keep_ratio="),
            (["--keep_ratio=-0.5"], "got keep_ratio=-0.5"),
            (["--scorer", "fastvv"], "Unknown scorer 'fastvv'"),
            (["--layer", "0"], "layer must be at least 1"),
        ],
    )
    def test_options_that_make_no_sense(
        self, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pocket_weights, "load_trained_pocket", lambda: pytest.fail("the model was loaded"))
        with pytest.raises(HeadRouterError, match=message):
            main(["demo", *options])

    def test_an_empty_prompt(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
        with pytest.raises(HeadRouterError, match="the prompt is empty"):
            main(["demo", "--audio", str(tmp_path / "a.wav"), "--prompt", " "])


def test_weights_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_weights, "POCKET_ADAPTER", tmp_path / "pocket_adapter")
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    with pytest.raises(PocketError, match="pocket_adapter has no whole export of a trained pocket model"):
        main(["demo", "--audio", str(tmp_path / "a.wav"), "--prompt", "What is said?"])


def answer(model: Any, audio: np.ndarray, prompt: str) -> str:
    decoder, processor = model
    module = LALMModule(decoder, processor, task="question", generate={"max_new_tokens": NEW_TOKENS}).eval()
    batch = AudioPromptDataModule(processor).collate([AudioPrompt(audio, prompt)])
    with torch.inference_mode():
        return " ".join(module.answer(batch["inputs"])[0].split())


class TestTable:
    @pytest.fixture
    def asked(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Two scenes of noise; the first two questions have right answers, the third has not."""
        scenes = {
            name: DemoScene(name, noise(seconds)[:, 0], {"voice": (0.2, 0.8), "bell": (1.0, 1.4)})
            for name, seconds in (("short", 1.6), ("long", 2.4))
        }
        spoken = answer(model, scenes["short"].audio, "w40 w41")
        heard = answer(model, scenes["short"].audio, "w50")
        assert spoken
        assert heard
        questions = (
            DemoQuestion("short", "semantic", "transcription", "w40 w41", spoken, evidence=("voice",)),
            DemoQuestion("short", "acoustic", "sound", "w50", heard, (), ("bell",), 0.25),
            DemoQuestion("long", "acoustic", "gender", "w60", "man", ("man", "woman"), ("voice", "bell"), 0.5),
        )
        loaded: list[list[str]] = []

        def load(names: list[str]) -> dict[str, DemoScene]:
            loaded.append(names)
            return scenes

        monkeypatch.setattr(demo_scenes, "DEMO_QUESTIONS", questions)
        monkeypatch.setattr(demo_scenes, "demo_scenes", load)
        return loaded

    def test_marks_counts_and_draws(
        self, asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
    ) -> None:
        from matplotlib import pyplot

        figures: list[Any] = []
        monkeypatch.setattr(pyplot, "close", figures.append)
        main(["demo", "--keep_ratio", "[1.0,0.25]", "--output", str(tmp_path / "demo.png")])
        out = capsys.readouterr().out
        answers, costs = out.split("\nAnswers")[1].split("\nTokens")
        answers, costs = [each.splitlines() for each in answers.strip().split("\n\n")], cells(costs, " ")
        assert [lines[0] for lines in answers] == [
            "1. short, 2 s, semantic: w40 w41", "2. short, 2 s, acoustic: w50", "3. long, 2 s, acoustic: w60",
        ]  # fmt: skip
        assert [[line.split()[0] for line in lines[1:]] for lines in answers] == [
            ["right", "unpruned", "1", "0.25"]
        ] * 3
        marks = [["(right)" in line for line in lines[2:]] for lines in answers]
        assert [mark[:2] for mark in marks] == [[True, True]] * 2 + [[False, False]]
        assert [row[1:4] for row in costs] == [["40", "40", "10"], ["40", "40", "10"], ["60", "60", "15"]]
        right = sum(mark[2] for mark in marks)
        assert f"Right, all questions: unpruned 2 of 3; 1 2 of 3; 0.25 {right} of 3; by chance 0.8." in out
        assert "Right, semantic questions: unpruned 1 of 1; 1 1 of 1; 0.25 " in out
        assert asked == [["short", "short", "long"]]

        assert (tmp_path / "demo.png").read_bytes().startswith(PNG)
        (figure,) = figures
        _, semantic, acoustic = figure.axes
        assert semantic.get_title() == "semantic: w40 w41"
        assert acoustic.get_title() == "acoustic: w50"
        kept = np.asarray(semantic.images[0].get_array())
        assert kept.shape == (2, 40)
        assert kept.sum(1).tolist() == [40, 10]
        (frame,) = acoustic.patches
        assert frame.get_x() == 1.0
        assert frame.get_width() == pytest.approx(0.4)

    def test_the_encoder_reads_each_audio_once(
        self, asked: list[list[str]], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tower,) = (module for name, module in model[0].named_modules() if name.endswith("audio_tower"))
        read: list[Any] = []
        plain = type(tower).forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            read.append(self)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(type(tower), "forward", forward)
        main(["demo", "--keep_ratio", "0.5", "--output", str(tmp_path / "demo.png")])
        assert len(read) == 2
        assert "forward" not in vars(tower)

    def test_the_first_questions_only(
        self, asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["demo", "--questions", "1", "--keep_ratio", "0.5", "--output", str(tmp_path / "demo.png")])
        out = capsys.readouterr().out
        assert "Right, all questions: unpruned 1 of 1; 0.5 " in out
        assert asked == [["short"]]


@pytest.mark.parametrize(
    ("text", "right", "shown"),
    [
        ("A woman.", True, "A woman. (right)"),
        ("man", False, "man (wrong)"),
        ("", False, "(wrong)"),
        ("a | b\nc", False, "a | b c (wrong)"),
        ("x" * 60, False, "x" * 41 + "... (wrong)"),
    ],
)
def test_mark(text: str, right: bool, shown: str) -> None:
    question = DemoQuestion("", "acoustic", "gender", "A man or a woman?", "woman", ("man", "woman"), (), 0.5)
    assert command._mark(question, text) == (right, shown)


def test_mark_of_a_transcription() -> None:
    question = DemoQuestion("", "semantic", "transcription", "Transcribe.", "the best of times")
    assert command._mark(question, "The best of times.") == (True, "The best of times. (right)")
    assert command._mark(question, "the rest of times") == (False, "the rest of times (wrong, 1 of 4 words)")
