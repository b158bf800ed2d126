"""A LightningModule over any supported Hugging Face audio language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import find_lalm
from headrouter_pl.tasks import Task, get_task

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, ProcessorMixin

Batch = Mapping[str, Any]
"""``inputs``: what the model takes; ``answers`` and ``keys``: lists of strings. Training batches have ``labels`` in
``inputs``."""


class LALMModule(L.LightningModule):
    """Validates, tests, predicts and LoRA-tunes an audio language model.

    Args:
        model: A supported model, or the name or local path of a checkpoint.
        processor: Its processor; loaded from the same place if ``model`` is a name.
        task: A name of :data:`headrouter_pl.tasks.TASKS`, or a task: how answers are read and scored.
        lora: A peft config; the model is wrapped with it and its other weights are frozen.
        generate: Settings of ``model.generate``; greedy, with the task's ``max_new_tokens``, by default.
        learning_rate: Of AdamW, for the weights that train.
        weight_decay: Of AdamW.
        dtype: Of the loaded weights, e.g. ``"bfloat16"``; for a name only.
        attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``; for a name only.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        processor: ProcessorMixin | None = None,
        *,
        task: str | Task = "transcription",
        lora: PeftConfig | None = None,
        generate: Mapping[str, Any] | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        dtype: str | None = None,
        attn_implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        if isinstance(model, str):
            model, processor = _load(model, processor, dtype, attn_implementation)
        if processor is None:
            raise HeadRouterError("Pass the model's processor, or the name of a checkpoint that has one.")
        find_lalm(model)  # refused here rather than in the middle of a run
        if lora is not None:
            from peft import get_peft_model

            model = get_peft_model(model, lora)
        self.model: nn.Module = model
        self.processor = processor
        self.task = get_task(task)
        self.generate_settings = {
            "do_sample": False,
            "max_new_tokens": self.task.max_new_tokens,
            **dict(generate or {}),
        }
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.metrics = nn.ModuleDict({stage: self.task.metric() for stage in ("val", "test")})

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self.model(**inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the answer tokens."""
        inputs = self._to_model_dtype(batch["inputs"])
        if "labels" not in inputs:
            raise HeadRouterError("A training batch needs inputs['labels']; AudioPromptDataModule makes them for fit.")
        loss = self.model(**inputs, use_cache=False).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["keys"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Generates and scores answers; returns them as ``texts``."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """Generates and scores answers; returns them as ``texts``."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str | None]]:
        """Generates answers: one record per sample, with ``key``, ``text`` and the parsed ``answer``."""
        texts = self.answer(batch["inputs"])
        return [
            {"key": key, "text": text, "answer": self.task.parse(text)}
            for key, text in zip(batch["keys"], texts, strict=True)
        ]

    def answer(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Generated text of each sample, without its prompt."""
        inputs = self._to_model_dtype({name: value for name, value in inputs.items() if name != "labels"})
        output = self.model.generate(**inputs, **self.generate_settings)  # type: ignore[operator]
        return self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _to_model_dtype(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Processors give float32 features, which a model in half precision does not take."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, list[str]]:
        texts = self.answer(batch["inputs"])
        metric: Any = self.metrics[stage]
        metric.update([self.task.parse(text) for text in texts], [self._target(text) for text in batch["answers"]])
        self.log(f"{stage}/{self.task.name}", metric, batch_size=len(texts), prog_bar=True)
        return {"texts": texts}

    def _target(self, answer: str) -> str:
        parsed = self.task.parse(answer)
        return answer if parsed is None else parsed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the weights that train."""
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay)


def _load(
    name: str, processor: ProcessorMixin | None, dtype: str | None, attn_implementation: str
) -> tuple[PreTrainedModel, ProcessorMixin]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    architectures: Sequence[str] = config.architectures or ()
    known = [
        getattr(transformers, architecture) for architecture in architectures if hasattr(transformers, architecture)
    ]
    if not known:
        raise HeadRouterError(f"{name} names the architectures {list(architectures)}; none is in transformers.")
    model = known[0].from_pretrained(name, dtype=dtype or "auto", attn_implementation=attn_implementation)
    return model, processor or transformers.AutoProcessor.from_pretrained(name)
