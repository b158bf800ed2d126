"""Batches by length: what they hold, their order, and going on in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

from headrouter_pl.data import bucketing
from headrouter_pl.data.bucketing import LengthBucketSampler, ResumableDataLoader
from headrouter_pl.errors import HeadRouterError

LENGTHS = torch.randint(1, 300, (97,), generator=torch.Generator().manual_seed(0)).tolist()


def epochs(sampler: LengthBucketSampler, *numbers: int) -> list[list[list[int]]]:
    found = []
    for epoch in numbers:
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_all_samples_once_under_the_budget() -> None:
    sampler = LengthBucketSampler([*LENGTHS, 5000], 1000)
    for batches in epochs(sampler, 0, 1, 2):
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(98))
        for batch in batches:
            widths = [5000 if i == 97 else LENGTHS[i] for i in batch]
            assert len(batch) * max(widths) <= 1000 or batch == [97]
    tokens = sum(LENGTHS) + 5000
    padded = sum(len(b) * max(5000 if i == 97 else LENGTHS[i] for i in b) for b in batches)
    assert padded < 1.15 * tokens


def test_order_is_new_each_epoch_and_the_same_again() -> None:
    first, second = epochs(LengthBucketSampler(LENGTHS, 1000), 0, 1)
    assert first != second
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}  # who is with whom changes too
    assert epochs(LengthBucketSampler(LENGTHS, 1000), 1, 0) == [second, first]
    assert epochs(LengthBucketSampler(LENGTHS, 1000, seed=1), 0) != [first]
    plain = LengthBucketSampler(LENGTHS, 1000, shuffle=False)
    assert epochs(plain, 0) == epochs(plain, 1)


def test_what_cannot_be_is_refused() -> None:
    for lengths, budget in (([], 10), ([0], 10), ([1], 0)):
        with pytest.raises(ValueError, match="positive"):
            LengthBucketSampler(lengths, budget)


def test_processes_share_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = epochs(LengthBucketSampler(LENGTHS, 700), 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(bucketing, "_world", lambda rank=rank: (rank, 3))
        sampler = LengthBucketSampler(LENGTHS, 700)
        shares += epochs(sampler, 3)
        assert len(shares[-1]) == len(sampler)
    assert len({len(share) for share in shares}) == 1
    together = [share[i] for i in range(len(shares[0])) for share in shares]
    assert together[: len(whole)] == whole
    assert together[len(whole) :] == whole[: len(together) - len(whole)]


class TestResume:
    def test_of_other_batches_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bucketing, "_world", lambda: (0, 2))
            sampler = LengthBucketSampler(LENGTHS, 700)
            sampler.done = 3
            state = sampler.state_dict()
            patch.setattr(bucketing, "_world", lambda: (1, 2))
            other = LengthBucketSampler(LENGTHS, 700)
            other.load_state_dict(state)  # that of the first process is everybody's
            assert list(other) == list(LengthBucketSampler(LENGTHS, 700))[3:]
        few, many = state["batches"], len(LengthBucketSampler(LENGTHS, 700))
        assert few < many
        with pytest.raises(HeadRouterError, match=rf"\(processes: 2, now 1; batches: {few}, now {many}\).*initial_ch"):
            LengthBucketSampler(LENGTHS, 700).load_state_dict(state)

    @pytest.mark.parametrize(
        ("lengths", "budget", "options"),
        [(LENGTHS[:-1], 700, {}), (LENGTHS, 300, {}), (LENGTHS, 700, {"seed": 1}), (LENGTHS, 700, {"shuffle": False})],
    )
    def test_of_another_plan_is_refused(self, lengths: list[int], budget: int, options: dict[str, int]) -> None:
        sampler = LengthBucketSampler(LENGTHS, 700)
        sampler.done = 3
        other = LengthBucketSampler(lengths, budget, **options)  # type: ignore[arg-type]
        with pytest.raises(HeadRouterError, match=f"plan: {sampler.plan}, now {other.plan}"):
            other.load_state_dict(sampler.state_dict())

    def test_between_epochs_the_batches_may_change(self) -> None:
        sampler = LengthBucketSampler(LENGTHS, 700)
        other = LengthBucketSampler(LENGTHS, 300)
        other.load_state_dict(sampler.state_dict())
        assert list(other) == list(LengthBucketSampler(LENGTHS, 300))
        sampler.done = len(sampler)
        assert sampler.done < len(other)
        other.load_state_dict(sampler.state_dict())
        assert list(other) == []
        assert epochs(other, 1) == epochs(LengthBucketSampler(LENGTHS, 300), 1)

    def test_a_state_of_before_is_taken(self) -> None:
        sampler = LengthBucketSampler(LENGTHS, 700)
        sampler.load_state_dict({"epoch": 2, "done": 3})
        assert list(sampler) == epochs(LengthBucketSampler(LENGTHS, 700), 2)[0][3:]


class Seen(L.LightningModule):
    """Learns nothing, notes every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, steps: int, resume: Path | None = None, workers: int = 0, budget: int = 3000) -> list[list[int]]:
    """The batches of a run that leaves a checkpoint after each step."""

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> ResumableDataLoader:
            sampler = LengthBucketSampler(LENGTHS, budget)
            return ResumableDataLoader(list(range(97)), batch_sampler=sampler, num_workers=workers)

    module = Seen()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        max_steps=steps, max_epochs=-1,
        callbacks=ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
    )  # fmt: skip
    trainer.fit(module, Data(), ckpt_path=resume)
    return module.seen


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_next_batch(tmp_path: Path, workers: int) -> None:
    size = len(LengthBucketSampler(LENGTHS, 3000))
    whole = fit(tmp_path, 3 * size)
    assert whole == [b for epoch in epochs(LengthBucketSampler(LENGTHS, 3000), 0, 1, 2) for b in epoch]
    at = size + size // 2
    for stop in (at, size) if not workers else (at,):
        start = fit(tmp_path, stop, workers=workers)
        rest = fit(tmp_path, 3 * size, resume=tmp_path / f"step={stop}.ckpt", workers=workers)
        assert start + rest == whole


def test_a_checkpoint_of_other_batches_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    with pytest.raises(HeadRouterError, match="of the middle of an epoch with other batches"):
        fit(tmp_path, 3, resume=tmp_path / "step=2.ckpt", budget=2000)


def test_lightning_can_put_its_distributed_sampler_in() -> None:
    from lightning.fabric.utilities.data import _replace_dunder_methods
    from lightning.pytorch.utilities.data import _dataloader_init_kwargs_resolve_sampler, _update_dataloader
    from torch.utils.data import BatchSampler

    with _replace_dunder_methods(BatchSampler):  # what Lightning does around train_dataloader
        loader = ResumableDataLoader(list(range(97)), batch_sampler=LengthBucketSampler(LENGTHS, 3000))
    other = DistributedSampler(range(97), num_replicas=2, rank=1)  # type: ignore[arg-type]
    assert "batch_sampler" in _dataloader_init_kwargs_resolve_sampler(loader, other)
    again = _update_dataloader(loader, other)
    assert isinstance(again, ResumableDataLoader)
    assert list(again.batch_sampler) == list(loader.batch_sampler)
