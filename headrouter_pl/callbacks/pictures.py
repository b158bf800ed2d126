"""Pictures of heads, routes and kept tokens for the logger."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from headrouter_pl.callbacks._common import StageCallback
from headrouter_pl.callbacks.head_router import find_pruners
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.pictures.summary import Summary, as_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HeadRouterPictures"]


class HeadRouterPictures(StageCallback):
    """Logs what a :class:`HeadRouterCallback` of the run does, as pictures, every so many batches.

    Example::

        trainer = L.Trainer(callbacks=[HeadRouterCallback(), HeadRouterPictures(50)], logger=TensorBoardLogger("logs"))

    ``headrouter/STAGE/selectivity`` and ``.../head_weights`` are heatmaps of layers and heads, ``.../retention`` is the
    share of tokens kept by their place in the audio, and ``.../route`` a histogram of each type's probability: each of
    the samples since the picture before, of process zero alone. What a scorer does not have is left out.

    Loggers that take images are those with ``log_image(key, images)``, as W&B's, or an ``experiment`` with
    ``add_figure(tag, figure, global_step)``, as TensorBoard's, whose step is the number of the batch in its stage. Of
    others it is warned once.

    Args:
        every_n_batches: Batches from picture to picture, in each stage.

    Raises:
        ConfigurationError: If ``every_n_batches`` is not positive, or the trainer has no HeadRouterCallback.
        HeadRouterError: If matplotlib is missing.
    """

    def __init__(self, every_n_batches: int = 100) -> None:
        if every_n_batches < 1:
            raise ConfigurationError(f"every_n_batches must be at least 1, got {every_n_batches}.")
        if find_spec("matplotlib") is None:
            raise HeadRouterError("HeadRouterPictures draws with matplotlib: pip install 'headrouter-pl[demo]'.")
        self.every_n_batches = every_n_batches
        self._summaries: dict[str, Summary] = {}
        self._batches: dict[str, int] = {}
        self._warned: set[str] = set()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not find_pruners(trainer):
            raise ConfigurationError(
                "HeadRouterPictures shows what a HeadRouterCallback does, and the trainer has none; add one."
            )
        self._summaries.clear()  # of another run, perhaps of another model
        self._batches.clear()

    @override
    def _on_batch_end(self, trainer: Trainer, module: LightningModule, stage: str, outputs: Any, batch: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        pruned = find_pruners(trainer, stage)
        if not pruned:
            return
        summary = self._summaries.setdefault(stage, Summary())
        for sample in pruned[0].report.samples:
            summary.add(sample)
        self._batches[stage] = step = self._batches.get(stage, 0) + 1
        if step % self.every_n_batches == 0:
            figures = summary.figures()
            summary.clear()
            for name, figure in figures.items():
                self._log(trainer, f"headrouter/{stage}/{name}", figure, step)

    def _log(self, trainer: Trainer, name: str, figure: Figure, step: int) -> None:
        if not trainer.loggers:
            self._warn("The trainer has no logger, so HeadRouterPictures has nowhere to log to.")
        for logger in trainer.loggers:
            taker: Any = logger
            if hasattr(taker, "log_image"):
                taker.log_image(key=name, images=[as_image(figure)])
            elif hasattr(getattr(taker, "experiment", None), "add_figure"):
                taker.experiment.add_figure(name, figure, global_step=step)
            else:
                self._warn(
                    f"{type(logger).__name__} takes no images (it has neither log_image nor experiment.add_figure), so "
                    "HeadRouterPictures does not log to it. TensorBoardLogger and WandbLogger do."
                )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)
