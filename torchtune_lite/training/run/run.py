"""One run of a training recipe, but for its method: data, resuming, counting, logging, validating, saving, stopping.

Two recipes must not differ in these. A recipe calls them in this order:

    run = training.Run(cfg)
    model = run.build_model()                  # every check that needs no weight
    ...                                        # the weights, the loss
    run.prepare(model, loss_fn)
    run.start(model, optimizer, loss, save)    # goes on from a checkpoint; from here on output_dir is this run's
    with run:
        for window in run.windows():           # the micro-batches of each step that is left
            for batch in window:
                run.backward(loss(batch))      # with `run.inputs`, `run.autocast` and `run.summed_loss`
            step_loss, grad_norm = run.clip()
            if run.may_step(step_loss, grad_norm):
                optimizer.step()               # then drop the gradients, and step run.lr_scheduler
            run.end_step(step_loss, grad_norm)
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchtune_lite import __version__, checkpoint, config, data, peft
from torchtune_lite.errors import Stopped
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.optim import get_constant_schedule_with_warmup
from torchtune_lite.training.compiling import compile_layers
from torchtune_lite.training.distributed import init_world
from torchtune_lite.training.environment import choose_dtype, get_precision, set_seed
from torchtune_lite.training.inference import build_model
from torchtune_lite.training.memory.activations import set_activations
from torchtune_lite.training.memory.usage import parameter_summary, storage_summary
from torchtune_lite.training.metrics.meter import Meter
from torchtune_lite.training.profiler import Profiler
from torchtune_lite.training.run.checkpoints import Checkpoints
from torchtune_lite.training.run.data import RunData
from torchtune_lite.training.run.progress import Progress, check_patience
from torchtune_lite.training.run.records import Records
from torchtune_lite.training.run.validation import measure
from torchtune_lite.training.settings import TrainingSettings
from torchtune_lite.training.signals import Signals, StopRequested
from torchtune_lite.training.step.checks import may_step, steps
from torchtune_lite.training.step.gradients import Gradients
from torchtune_lite.training.step.losses import summed_loss
from torchtune_lite.training.step.noise import add_neftune_noise
from torchtune_lite.utils import get_logger, to_device


class Run:
    """One run, of the settings `cfg`; of several processes that train together each has its own.

    A recipe reads `device`, `dtype` of the weights, `autocast` to compute in, `output_dir`, `checkpointer`,
    `resume_from` (a checkpoint folder or None) and, from `start` on, `lr_scheduler`.
    """

    def __init__(self, cfg: TrainingSettings) -> None:
        self.cfg = cfg
        self.log = get_logger(cfg.log_level)
        self.world = init_world(cfg)
        self.device = self.world.device
        cfg.dtype = choose_dtype(cfg.dtype, self.device)
        self.dtype, self.autocast = get_precision(cfg.dtype, self.device, mixed=cfg.mixed_precision)
        self.output_dir = Path(cfg.output_dir)
        self.progress = self.world.on_main(lambda: Progress(seed=set_seed(cfg.seed)))
        set_seed(self.progress.seed)
        self.signals = Signals(self.world.size)
        check_patience(cfg.patience, cfg.dataset_val)

    def build_model(self) -> TransformerDecoder:
        """Build the model without weights and the data that fit it; check that the run can go on, if it is to."""
        cfg, world = self.cfg, self.world
        self.resume_from = world.on_main(lambda: checkpoint.resume_folder(self.output_dir, cfg.resume_from_checkpoint))
        self.checkpointer, tokenizer, model = build_model(cfg)
        self.checkpointer.world = world.writers
        self.checkpointer.use_tokenizer(tokenizer, model.config.vocab_size)
        data.limit_length(tokenizer, model.config.max_seq_len)
        data.fix_date(tokenizer, checkpoint.start_date(self.resume_from, self.progress.start_date))
        self.data = RunData(cfg, tokenizer, model.config.vocab_size, self.progress.seed, world.rank, world.size)
        self.total_steps = self.data.steps_per_epoch * cfg.epochs
        self.ranks = peft.rank_allocator(model, self.total_steps)
        fingerprint, keys = self.data.train.fingerprint(), config.to_dict(cfg)
        world.check_alike({**keys, "data": fingerprint, "version": __version__})
        self.facts = checkpoint.run_facts(keys, fingerprint, self.data.steps_per_epoch, world.size)
        checkpoint.check_resumable(self.resume_from, self.facts)
        world.shard(model)
        set_seed(self.progress.seed)  # data that were looked at may have drawn
        return model

    def prepare(self, model: TransformerDecoder, loss_fn: nn.Module) -> None:
        """Make a model that has its weights compile, keep or recompute activations and add noise, by the settings."""
        self.world.draw_apart(self.progress.seed)  # adapters, which are made with the weights, are the same in all
        if self.cfg.compile:
            compile_layers(model, self.device)
        self.log.info("%s; %s", parameter_summary(model), storage_summary(model))
        set_activations(model, self.cfg, self.data.train, loss_fn)
        add_neftune_noise(model, self.cfg.neftune_noise_alpha)

    def start(
        self,
        model: TransformerDecoder,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[data.Batch], Tensor],
        save: Callable[..., None],
    ) -> None:
        """Restore the checkpoint to resume from, claim output_dir and open checkpoints, loggers and meters in it.

        `loss` sums the loss over the label tokens of a micro-batch, for validation; `save(folder, model=…, state=…,
        verify=…)` writes a checkpoint.
        """
        cfg, resume_from = self.cfg, self.resume_from
        self.model, self.optimizer, self._loss, self._write = model, optimizer, loss, save
        self.lr_scheduler = config.instantiate(
            cfg.lr_scheduler, optimizer, num_training_steps=self.total_steps
        ) or get_constant_schedule_with_warmup(optimizer, num_warmup_steps=0)
        if resume_from is not None:
            state, world = (model, optimizer, self.lr_scheduler, self.facts), self.world
            self.progress = Progress(**checkpoint.restore(resume_from, *state, rank=world.rank, size=world.size))
            self.data.train.seed, self.data.train.cursor = self.progress.seed, self.progress.cursor
        progress, step = self.progress, self.progress.global_step
        clipping = cfg.clip_grad_norm, cfg.dtype, cfg.optimizer_in_bwd
        self.grads = Gradients(optimizer, progress, *clipping, self.world, self.ranks)
        self.rng_state = checkpoint.rng_state()  # of the last step boundary
        cfg.seed = progress.seed  # drawn, or that of the run that goes on
        self.records = Records(cfg, progress, self.world)  # nothing is written before it
        saving = {"background": cfg.enable_async_checkpointing, "verify": cfg.verify_saves, "rank": self.world.rank}
        self.checkpoints = Checkpoints(self.output_dir, cfg.keep_last_n_checkpoints, resume_from, step, **saving)
        profiler = config.instantiate(cfg.profiler) or Profiler(cfg.profile, f"{self.output_dir}/profile")
        profiler = None if self.world.rank else profiler  # of the first process
        self.meter = Meter(model, self.data.train, self.device, cfg.log_peak_memory_stats, profiler, self.world)
        self.bar: tqdm | None = None

    def __enter__(self) -> "Run":
        """Note signals from here on."""
        self.signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the run; where a signal has asked to stop, save at the last step boundary first and raise Stopped."""
        stopped = None
        try:
            if self.bar is not None:
                self.bar.close()
            if isinstance(error, StopRequested):
                stopped = self._stop(error)
        finally:
            if self.world.size == 1:  # else the agent's signal, once another process has ended, would cut this short
                self.signals.__exit__(kind, error, traceback)
            self.close()
            self.signals.__exit__(kind, error, traceback)
        if error is None or stopped:
            self.world.close()
        if stopped:
            raise stopped from None

    def _stop(self, request: StopRequested) -> Stopped:
        step = self.progress.global_step
        self.optimizer.zero_grad(set_to_none=True)  # of the window that is not whole
        checkpoint.set_rng_state(self.rng_state)
        saved = self._saved_at(step)
        if step and not saved:
            self.save(f"step_{step}", final=True)
            saved = self._saved_at(step)
        return request.stopped(step, saved)

    def _saved_at(self, step: int) -> Path | None:
        return self.world.on_main(lambda: self.checkpoints.at(step))

    def windows(self) -> Iterator[list[data.Batch]]:
        """Yield the micro-batches of each optimizer step that is left; the recipe takes it and calls `end_step`."""
        progress, steps_per_epoch = self.progress, self.data.steps_per_epoch
        first_step = progress.global_step
        self.model.train()
        if progress.val_pending:  # when the run was stopped
            self._validate_and_save()
        while not self.is_done():
            epoch, done = divmod(progress.global_step, steps_per_epoch)
            bar = {"desc": f"epoch {epoch}", "unit": "step", "disable": self.world.rank > 0}
            with tqdm(total=steps_per_epoch, initial=done, **bar) as self.bar:
                windows = self.data.windows(epoch, done)
                for window, counts in steps(windows, self.data.train.pad_id, self.world, self.signals):
                    self.meter.start(window, counts)
                    self.window, self.lr, self.loss = window, self.lr_scheduler.get_last_lr()[0], 0.0
                    self.num_tokens = counts.labels
                    self.grads.start(len(window), counts.labels)
                    yield window
                    if self.is_done():
                        break
        progress.log_end(first_step, self.cfg.patience)
        self.grads.log_end()

    def inputs(self, batch: data.Batch) -> tuple[Tensor, Tensor]:
        """Return `tokens` and `labels` `[b, s]` on the device; leave the loop where a signal has asked to stop."""
        self.signals.poll()
        return to_device(batch["tokens"], self.device), to_device(batch["labels"], self.device)

    def summed_loss(
        self, loss_fn: Callable[..., Tensor], output: nn.Module, hidden: Tensor, labels: Tensor, batch: data.Batch
    ) -> Tensor:
        """Sum the loss of `hidden [b, s, d]` over the label tokens; note for the log what each data set has of it."""
        loss, shares = summed_loss(loss_fn, output, hidden, labels, batch)
        self.meter.note(shares)
        return loss

    def backward(self, loss_sum: Tensor) -> None:
        """Add the gradient of a micro-batch, whose loss is divided by the label tokens of the whole step."""
        loss = loss_sum / max(self.num_tokens, 1)
        self.grads.backward(loss)
        self.loss = self.loss + loss.detach()

    def clip(self) -> tuple[float, float]:
        """Clip the step's gradients; return its loss and their norm. Here the host waits for the device."""
        return self.grads.clip(self.loss)

    def may_step(self, loss: float, grad_norm: float) -> bool:
        """Return whether the weights may change: not by a step without labels, nor where a number is not finite.

        Then `on_nonfinite` says whether the step is skipped or the run stops.
        """
        rows = partial(self.data.where, self.progress.global_step, len(self.window))
        finite = may_step(self.progress, self.cfg.on_nonfinite, rows, loss=loss, grad_norm=grad_norm)
        return finite and self.num_tokens > 0

    def end_step(self, loss: float, grad_norm: float) -> None:
        """Count the step that was taken, and log, validate and save where it is its turn."""
        cfg, progress = self.cfg, self.progress
        progress.global_step += 1
        self.world.place = f"step {progress.global_step + 1}"
        progress.cursor = self.data.train.cursor
        progress.val_pending = self.is_due(*self.data.validated_every(cfg))
        self.rng_state = checkpoint.rng_state()
        self.bar.set_postfix_str(f"loss {loss:.4f}, {self.meter.stop():,.0f} tokens/s", refresh=False)
        self.bar.update()
        if self.is_due(cfg.log_every_n_steps) or progress.val_pending or self.is_done():
            self._log_step(loss=loss, lr=self.lr, grad_norm=grad_norm, **self.grads.log_values())
        self._validate_and_save()

    @property
    def epoch(self) -> int:
        """The epoch of the last step that was taken."""
        return (self.progress.global_step - 1) // self.data.steps_per_epoch

    def is_due(self, *every_n_steps: int | None) -> bool:
        """Return whether it is this step's turn for what comes every n steps, any of these; None: at an epoch's end."""
        return any(self.progress.global_step % (n or self.data.steps_per_epoch) == 0 for n in every_n_steps)

    def is_done(self) -> bool:
        """Return whether the run ends here: all steps taken, or `patience` at its end."""
        return self.progress.global_step >= self.total_steps or self.progress.is_out_of_patience(self.cfg.patience)

    def _log_step(self, **values: Any) -> None:
        """Log the numbers of one optimizer step, and what the steps since the last time cost."""
        values |= {"epoch": self.epoch, "skipped_steps": self.progress.skipped_steps, **self.meter.take()}
        self.records.log({name: float(value) for name, value in values.items()}, step=self.progress.global_step)

    def _validate_and_save(self) -> None:
        if self.progress.val_pending:
            self._validate()
        self.checkpoints.poll()
        asked = self.signals.take_save()
        if self.is_due(None):
            self.save(f"epoch_{self.epoch}")
        elif asked or self.is_done() or self.is_due(self.cfg.save_every_n_steps):
            self.save(f"step_{self.progress.global_step}")

    def _validate(self) -> None:
        progress, scored = self.progress, self.is_due(self.cfg.run_val_every_n_steps)
        values, answers = measure(self.model, self.data, self._loss, self.autocast, self.world, ask=scored)
        checkpoint.set_rng_state(self.rng_state)  # data sets and losses may draw
        progress.val_pending = False
        if "val_loss" in values:
            progress.validated(values["val_loss"], counts=scored)
        if answers:
            self.records.log_table("answers", answers, step=progress.global_step)
        if values:  # none where it was pending for data that are left out now
            self.records.log({"epoch": self.epoch, **values}, step=progress.global_step)
            self.log.info("step %d: %s", progress.global_step, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def save(self, name: str, final: bool = False) -> None:
        """Publish the checkpoint folder `name` under output_dir, whole or not at all."""
        parts = self.model, self.optimizer, self.lr_scheduler, asdict(self.progress), self.facts
        state = checkpoint.gather(*parts, rng=self.world.gather(checkpoint.rng_state()))
        save = partial(self.checkpoints.save, name, self.progress, self._write, self.model, state)
        self.world.save(lambda: save(final=final or self.is_done()))

    def close(self) -> None:
        """End a save, close the loggers, draw the loss curve and release the output_dir."""
        self.checkpoints.close()
        summary = self.meter.close()
        self.data.report_read()
        self.records.close(summary)
