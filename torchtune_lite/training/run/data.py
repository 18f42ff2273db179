"""The training and validation data of a run: data sets as micro-batches, and the steps they make."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torchtune_lite import config, datasets
from torchtune_lite.data import AnyBatches, Batch, make_batches, report_read, steps_per_epoch, windows
from torchtune_lite.training.settings import TrainingSettings


class RunData:
    """The micro-batches of `dataset` and, by name, of `dataset_val`, and the questions of `dataset_eval`.

    The micro-batches are the share of the process `rank` of so many `processes`; `windows` has as many for each. The
    questions are asked by each of them. `steps_per_epoch` counts optimizer steps.
    """

    def __init__(
        self, cfg: TrainingSettings, tokenizer: Any, vocab_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.accumulation = cfg.gradient_accumulation_steps
        options = {key: getattr(cfg, key) for key in ("collate", "group_by_length", "num_workers")}
        options |= {"pad_id": tokenizer.pad_id, "vocab_size": vocab_size, "seed": seed}
        options |= {"rank": rank, "processes": processes}
        dataset = datasets.concatenated(config.instantiate(cfg.dataset, tokenizer), cfg.dataset_weights)
        self.train = make_batches(dataset, cfg.batch_size, shuffle=cfg.shuffle, **options)
        sets = datasets.validation_sets(config.instantiate(cfg.dataset_val, tokenizer))
        batch_size = cfg.batch_size_val or cfg.batch_size
        self.val: dict[str, AnyBatches] = {
            name: make_batches(each, batch_size, shuffle=False, **options) for name, each in sets.items()
        }
        self.questions = None
        if cfg.dataset_eval is not None:
            from torchtune_lite.evaluation import SampleQuestions  # as all of evaluation, of no use to other runs

            asked = datasets.validation_sets(config.instantiate(cfg.dataset_eval, tokenizer), "dataset_eval")
            self.questions = SampleQuestions(asked, tokenizer, batch_size)
        self.steps_per_epoch = steps_per_epoch(self.train, self.accumulation, cfg.max_steps_per_epoch)

    def windows(self, epoch: int, done: int = 0) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch after the first `done`; the last may have fewer."""
        batches = self.train.epoch(epoch, start=done * self.accumulation)
        return islice(windows(batches, self.accumulation), self.steps_per_epoch - done)

    def validated_every(self, cfg: TrainingSettings) -> list[int | None]:
        """Return the numbers of steps after each of which there is something to measure; None: at an epoch's end."""
        asked = [cfg.run_val_every_n_steps] if self.val or self.questions else []
        return asked + ([cfg.save_every_n_steps, None] if self.val else [])

    def where(self, step: int, num_batches: int) -> str:
        """Say where the rows of a step stand; `step` is the number of steps before it, in all epochs."""
        epoch, done = divmod(step, self.steps_per_epoch)
        return self.train.where(epoch, done * self.accumulation, num_batches)

    def report_read(self) -> None:
        """Say of each large data set how many of the rows that were read were cut or left out."""
        report_read(self.train, *self.val.values())
