"""What training adds to the pocket LALM: its projector, and a LoRA adapter of its encoder and decoder, 12 MB."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headrouter_pl import tensorfile
from headrouter_pl.models.checkpoints import ADAPTER_FILE, PROJECTOR, PROJECTOR_FILE, merge_adapter, projector_state
from headrouter_pl.models.pocket import PocketError, load_pocket, pocket_folder

if TYPE_CHECKING:
    from transformers import AudioFlamingo3Processor

__all__ = ["POCKET_ADAPTER", "export_pocket", "load_pocket_checkpoint", "load_trained_pocket"]

POCKET_ADAPTER = Path(__file__).parent / "pocket_adapter"
"""The folder of the weights that come with the package."""

_FILES = (PROJECTOR_FILE, "adapter_config.json", ADAPTER_FILE)
_CARD = "card.json"  # written last: a folder without it is not whole


def export_pocket(
    model: nn.Module, folder: str | Path, *, cache: Path | None = None, about: Mapping[str, Any] | None = None
) -> Path:
    """Write the trained weights of a pocket LALM, in float16.

    Args:
        model: The trained pocket model in a PEFT model with one LoRA adapter, or a `LALMModule` that holds it.
        folder: Where to write `projector.safetensors`, PEFT's `adapter_config.json` and `adapter_model.safetensors`,
            and `card.json`. An export that is there is replaced; while that is under way the folder has no card, and
            is refused by `load_trained_pocket`.
        cache: As for `load_pocket`.
        about: What else the card shall say, e.g. of the training; JSON.

    Returns:
        The folder.

    Raises:
        PocketError: The model has no single adapter, or a weight is not finite in float16.
    """
    from peft import PeftModel, get_peft_model_state_dict

    found = [module for module in model.modules() if isinstance(module, PeftModel)]
    if len(found) != 1 or list(found[0].peft_config) != ["default"]:
        raise PocketError("expected a model with one LoRA adapter, as LALMModule makes it of `lora`")
    adapted = found[0]
    state = projector_state(adapted.state_dict())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        tensorfile.write(scratch / PROJECTOR_FILE, _half(state))
        tensorfile.write(scratch / ADAPTER_FILE, _half(get_peft_model_state_dict(adapted)))
        config = copy.deepcopy(adapted.peft_config["default"])
        config.base_model_name_or_path, config.inference_mode = None, True  # a path would be this machine's
        config.save_pretrained(scratch)
        card = {
            **(about or {}),
            "recipe": pocket_folder(cache).name,
            "sha256": {file: hashlib.sha256((scratch / file).read_bytes()).hexdigest() for file in _FILES},
        }
        (scratch / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (folder / _CARD).unlink(missing_ok=True)
        for file in (*_FILES, _CARD):
            os.replace(scratch / file, folder / file)
    return folder


def load_trained_pocket(
    folder: str | Path | None = None,
    *,
    cache: Path | None = None,
    merge: bool = True,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    progress: bool = True,
) -> tuple[Any, AudioFlamingo3Processor]:
    """Load the pocket LALM with its trained weights, assembling it first if necessary.

    Args:
        folder: Of `export_pocket`; the one that comes with the package if None.
        cache: As for `load_pocket`, as are the following.
        merge: Whether to add the adapter to the decoder's weights, which gives a stock
            `AudioFlamingo3ForConditionalGeneration`; a frozen `PeftModel` otherwise.
        dtype: Type of the weights in memory; merged in float32, then cast.
        attn_implementation: As in `from_pretrained`.
        progress: Show progress bars (on stderr).

    Returns:
        The model, in eval mode on the CPU, and its processor.

    Raises:
        PocketError: The folder is not whole, or of another assembled model, or a file is not what the card says.
    """
    from peft import PeftModel

    folder = POCKET_ADAPTER if folder is None else Path(folder)
    _verify(folder, pocket_folder(cache).name)
    model, processor = load_pocket(cache, attn_implementation=attn_implementation, progress=progress)
    model.model.multi_modal_projector.load_state_dict(tensorfile.read(folder / PROJECTOR_FILE)[1])
    model = PeftModel.from_pretrained(model, str(folder))
    return (merge_adapter(model) if merge else model).to(dtype).eval(), processor


def load_pocket_checkpoint(
    path: str | Path,
    *,
    cache: Path | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    progress: bool = True,
) -> tuple[Any, AudioFlamingo3Processor]:
    """Load the pocket LALM with the weights of a checkpoint, before they are exported or while training goes on.

    Args:
        path: A Lightning checkpoint of a `LALMModule` with `lora` and `train_projector`.
        cache: As for `load_pocket`, as are the following.
        dtype: Type of the weights in memory; merged in float32, then cast.
        attn_implementation: As in `from_pretrained`.
        progress: Show progress bars (on stderr).

    Returns:
        A stock `AudioFlamingo3ForConditionalGeneration`, in eval mode on the CPU, and its processor.

    Raises:
        PocketError: The file is not such a checkpoint, or its weights do not fit.
    """
    from peft import LoraConfig, get_peft_model

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}
        settings = dict(saved["headrouter_lora"])
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise PocketError(f"{path} is not a checkpoint of a LALMModule: {error!r}") from error
    adapters = [name.split(".lora_A.")[0] for name in state if ".lora_A." in name]
    layers = [name.removeprefix("base_model.model.") for name in adapters]
    if not layers:
        raise PocketError(f"{path} has no LoRA weights")
    model, processor = load_pocket(cache, attn_implementation=attn_implementation, progress=progress)
    model = get_peft_model(model, LoraConfig(**settings, target_modules=layers))
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise PocketError(f"{path} is of another model: {error}") from error
    missing = [name for name in missing if "lora_" in name or PROJECTOR in name]
    if missing or unexpected:
        raise PocketError(f"{path} is of another model: missing {missing[:3]}, unknown {unexpected[:3]}")
    return merge_adapter(model).to(dtype).eval(), processor


def _verify(folder: Path, recipe: str) -> None:
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        sums, of = dict(card["sha256"]), card["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PocketError(f"{folder} has no whole export of a trained pocket model: {error!r}") from error
    if of != recipe:
        raise PocketError(f"the weights in {folder} are for the assembled model {of}; this version assembles {recipe}")
    for file in _FILES:
        try:
            found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        except OSError as error:
            raise PocketError(f"{folder} lacks {file}") from error
        if found != sums.get(file):
            raise PocketError(f"{folder / file}: sha256 expected {sums.get(file)}, found {found}")


def _half(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    for name, value in out.items():
        if not value.isfinite().all():
            raise PocketError(f"{name} is not finite in float16")
    return out
