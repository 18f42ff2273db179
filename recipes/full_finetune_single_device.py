"""Fine-tunes every weight of a model, on one device.

    tune run full_finetune_single_device --config llama2/7B_full_single_device checkpointer.checkpoint_dir=/models/7b
    tune cp full_finetune_single_device my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Writes under output_dir: `epoch_N/` and `step_N/` (the model, ready for transformers, with what a resume needs in
`resume/`), `metrics.jsonl`, `config.yaml`, `best.json`, at last `loss_curve.png`.
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchtune_lite import checkpoint, config, data, datasets, training, utils


@dataclass
class Settings:
    """The top-level keys of this recipe's YAML; a class as annotation, or `Any`, is a `_component_`."""

    output_dir: str | Path  # of this run alone

    model: training.WholeModel = config.component()  # sizes left out come from the checkpoint
    tokenizer: training.Tokenizer = config.component()  # with the prompt template and max_seq_len
    checkpointer: Any = config.component()  # reads the base model, writes checkpoints
    resume_from_checkpoint: bool | str | Path = False  # True, auto: the newest in output_dir; or a checkpoint folder
    save_every_n_steps: int | None = config.key(None, minimum=1)  # optimizer steps; null: at the end of each epoch only
    keep_last_n_checkpoints: int | None = config.key(None, minimum=1)  # and the best and the resumed one; null: all
    enable_async_checkpointing: bool = False  # True: training goes on during a save, for a copy of what is trained
    verify_saves: str | None = config.key("first_and_last", choices=("first_and_last", "all"))  # of the run; null: none

    dataset: Any = config.component("tokenizer")  # one, or a list of them
    dataset_weights: list[float] | None = None  # shares of a list's data sets in an epoch; null: each sample once
    dataset_val: Any = config.component("tokenizer", default=None, named=True)  # one, a list, or by name; null: none
    run_val_every_n_steps: int | None = config.key(None, minimum=1)  # optimizer steps; saves and epochs' ends too
    patience: int | None = config.key(None, minimum=1)  # validations without a better loss that end the run; null: none
    batch_size: int = config.key(2, minimum=1)  # sequences in a micro-batch
    batch_size_val: int | None = config.key(None, minimum=1)  # null: batch_size
    shuffle: bool = True  # a new order each epoch, a function of seed and epoch
    collate: str = config.key("padding_free", choices=tuple(data.COLLATES))  # samples joined in a row; or padded
    group_by_length: bool = False  # True: samples of about one length in a micro-batch, for collate: padded
    num_workers: int = config.key(0, minimum=0)  # processes that make micro-batches ahead of the step
    seed: int | None = None  # null: drawn, logged and written to config.yaml

    epochs: int = config.key(1, minimum=1)  # passes over the data set
    max_steps_per_epoch: int | None = config.key(None, minimum=1)  # optimizer steps; null: the whole data set
    gradient_accumulation_steps: int = config.key(1, minimum=1)  # micro-batches in an optimizer step
    clip_grad_norm: float | None = config.key(None, above=0)  # largest norm; null: not clipped, but logged
    on_nonfinite: str = config.key("stop", choices=("stop", "skip"))  # of a nan step; the third skipped in a row stops
    loss: training.Loss = config.component(default="torchtune_lite.modules.loss.LinearCrossEntropyLoss")  # summed
    optimizer: training.Optimizer = config.component("params")  # with the learning rate, lr
    optimizer_in_bwd: bool = False  # True: steps in the backward pass, no gradient outlives it; clipped one by one
    lr_scheduler: training.Schedule = config.component("optimizer", "num_training_steps", default=None)  # null: fixed

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; a device that is not there is an error
    dtype: str = config.key("auto", choices=("auto", "fp32", "bf16", "fp16"))  # auto: bf16 where native, else fp32
    mixed_precision: bool = False  # True: weights in fp32, only the computation in dtype
    compile: bool = False  # True: torch.compile of each layer; the first step then takes up to minutes
    enable_activation_checkpointing: bool = False  # True: recomputes activations, less memory, about a third slower
    ac_mode: str | None = config.key(None, choices=("full", "selective"))  # selective: only each ac_option-th layer
    ac_option: int | str | None = None  # with ac_mode: selective, a number
    memory_budget: float | str | None = None  # auto, or GB: recomputes as few layers as keep a step within it
    enable_activation_offloading: bool = False  # True: what is kept goes to the host's memory, on a GPU

    metric_logger: training.MetricLoggerInterface = config.component(default=None)  # metrics.jsonl is always written
    log_every_n_steps: int = config.key(1, minimum=1)  # optimizer steps; and those validated, and the last
    log_peak_memory_stats: bool = True  # with the metrics
    profiler: training.Profiler = config.component(default=None)  # traces of some steps
    profile: bool = False  # True: the same with its defaults, under output_dir/profile
    log_level: str = config.key("INFO", choices=("DEBUG", "INFO", "WARNING", "WARN", "ERROR"))  # least that is said


class FullFinetuneRecipeSingleDevice:
    """Trains all weights of a model.

    The loss of an optimizer step is the mean over the label tokens of all its micro-batches, so that neither padding
    nor `gradient_accumulation_steps` changes the gradient. The last, shorter window of an epoch is a step too.
    """

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg
        self.log = utils.get_logger(cfg.log_level)
        self.device = utils.get_device(cfg.device)
        cfg.dtype = training.choose_dtype(cfg.dtype, self.device)
        self.dtype, self.autocast = training.get_precision(cfg.dtype, self.device, mixed=cfg.mixed_precision)
        self.output_dir = Path(cfg.output_dir)
        self.progress = training.Progress(seed=training.set_seed(cfg.seed))
        self.signals = training.Signals()
        training.check_patience(cfg.patience, cfg.dataset_val)

    def setup(self) -> None:
        """Builds data, model, optimizer and loggers, cheapest checks first; restores the checkpoint to resume from."""
        cfg = self.cfg
        resume_from = checkpoint.resume_folder(self.output_dir, cfg.resume_from_checkpoint)
        self.checkpointer = config.instantiate(cfg.checkpointer)
        self.tokenizer = config.instantiate(cfg.tokenizer, defaults=self.checkpointer.tokenizer_args)
        with torch.device("meta"):  # shapes only: the weights come one by one from the checkpoint
            self.model = config.instantiate(cfg.model, defaults=self.checkpointer.decoder_args)
        self.checkpointer.use_tokenizer(self.tokenizer, self.model.config.vocab_size)
        data.limit_length(self.tokenizer, self.model.config.max_seq_len)
        data.fix_date(self.tokenizer, checkpoint.start_date(resume_from, self.progress.start_date))
        dataset = datasets.concatenated(config.instantiate(cfg.dataset, self.tokenizer), cfg.dataset_weights)
        self.batches = self._batches(dataset, cfg.batch_size, cfg.shuffle)
        sets = datasets.validation_sets(config.instantiate(cfg.dataset_val, self.tokenizer))
        batch_size = cfg.batch_size_val or cfg.batch_size
        self.batches_val = {name: self._batches(each, batch_size) for name, each in sets.items()}
        accumulation = cfg.gradient_accumulation_steps
        self.steps_per_epoch = data.steps_per_epoch(self.batches, accumulation, cfg.max_steps_per_epoch)
        self.total_steps = self.steps_per_epoch * cfg.epochs
        self.facts = checkpoint.run_facts(config.to_dict(cfg), self.batches.fingerprint(), self.steps_per_epoch)
        checkpoint.check_resumable(resume_from, self.facts)
        training.set_seed(self.progress.seed)  # data that were looked at may have drawn
        self.load_model(resume_from)
        if cfg.compile:
            training.compile_layers(self.model, self.device)
        self.log.info("%s; %s", training.parameter_summary(self.model), training.storage_summary(self.model))
        self.loss_fn = config.instantiate(cfg.loss)
        training.set_activations(self.model, cfg, self.batches, self.loss_fn)
        self.optimizer = config.instantiate(cfg.optimizer, [p for p in self.model.parameters() if p.requires_grad])
        self.lr_scheduler = config.instantiate(
            cfg.lr_scheduler, self.optimizer, num_training_steps=self.total_steps
        ) or training.get_constant_schedule_with_warmup(self.optimizer, num_warmup_steps=0)

        if resume_from is not None:
            saved = checkpoint.restore(resume_from, self.model, self.optimizer, self.lr_scheduler, self.facts)
            self.progress = training.Progress(**saved)
            self.batches.seed, self.batches.cursor = self.progress.seed, self.progress.cursor
        step, progress = self.progress.global_step, self.progress
        self.grads = training.Gradients(self.optimizer, progress, cfg.clip_grad_norm, cfg.dtype, cfg.optimizer_in_bwd)
        self.rng_state = checkpoint.rng_state()  # of the last step boundary
        self.claim = checkpoint.claim(self.output_dir)  # nothing is written before it
        cfg.seed = progress.seed  # drawn, or that of the run that goes on
        how = {"background": cfg.enable_async_checkpointing, "verify": cfg.verify_saves}
        self.checkpoints = training.Checkpoints(self.output_dir, cfg.keep_last_n_checkpoints, resume_from, step, **how)
        config.save(cfg, self.output_dir)
        logger = config.instantiate(cfg.metric_logger, defaults={"run_id": f"{self.claim.run_id}-{progress.start_id}"})
        self.metrics = training.MetricLoggers(self.output_dir, logger, resumed_step=step)
        self.metrics.log_config(config.to_dict(cfg))
        profiler = config.instantiate(cfg.profiler) or training.Profiler(cfg.profile, f"{self.output_dir}/profile")
        self.meter = training.Meter(self.model, self.batches, self.device, cfg.log_peak_memory_stats, profiler)

    def _batches(self, dataset: Any, batch_size: int, shuffle: bool = False) -> data.AnyBatches:
        how = {key: getattr(self.cfg, key) for key in ("collate", "group_by_length", "num_workers")}
        how |= {"pad_id": self.tokenizer.pad_id, "vocab_size": self.model.config.vocab_size}
        return data.make_batches(dataset, batch_size, seed=self.progress.seed, shuffle=shuffle, **how)

    def load_model(self, resume_from: Path | None) -> None:
        """Reads the base model, or leaves that to `restore`."""
        self.checkpointer.load(self.model, device=self.device, dtype=self.dtype, resume_from=resume_from)

    def train(self) -> None:
        """Runs the steps that are left; a signal to stop ends them at the last step boundary, with a checkpoint."""
        with self.signals:
            try:
                self.train_epochs()
            except training.StopRequested as request:
                step = self.progress.global_step
                self.optimizer.zero_grad(set_to_none=True)  # of the window that is not whole
                checkpoint.set_rng_state(self.rng_state)
                if step and not self.checkpoints.at(step):
                    self.save_checkpoint(f"step_{step}", final=True)
                raise request.stopped(step, self.checkpoints.at(step)) from None

    def train_epochs(self) -> None:
        """Takes step after step: group, forward and backward, clip, step, schedule, count, log, validate, save."""
        cfg, progress, first_step = self.cfg, self.progress, self.progress.global_step
        self.model.train()
        if progress.val_pending:  # when the run was stopped
            self.end_step()
        while not self.is_done():
            epoch, done = divmod(progress.global_step, self.steps_per_epoch)
            batches = self.batches.epoch(epoch, start=done * cfg.gradient_accumulation_steps)
            windows = data.windows(batches, cfg.gradient_accumulation_steps)
            with tqdm(total=self.steps_per_epoch, initial=done, desc=f"epoch {epoch}", unit="step") as bar:
                for window in islice(windows, self.steps_per_epoch - done):
                    self.meter.start(window)
                    num_tokens = self.grads.start(window)
                    loss = sum(self.forward_backward(batch, num_tokens) for batch in window)
                    loss, grad_norm = self.grads.clip(loss)  # where the host waits for the device
                    rows = partial(self.batches.where, epoch, bar.n * cfg.gradient_accumulation_steps, len(window))
                    finite = training.may_step(progress, cfg.on_nonfinite, rows, loss=loss, grad_norm=grad_norm)
                    if finite and num_tokens:  # a step without labels leaves the weights alone
                        self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                    lr = self.lr_scheduler.get_last_lr()[0]
                    self.lr_scheduler.step()
                    progress.global_step += 1
                    progress.cursor = self.batches.cursor
                    progress.val_pending = bool(self.batches_val) and self.is_due(
                        cfg.run_val_every_n_steps, cfg.save_every_n_steps, None
                    )
                    self.rng_state = checkpoint.rng_state()

                    bar.set_postfix_str(f"loss {loss:.4f}, {self.meter.stop():,.0f} tokens/s", refresh=False)
                    bar.update()
                    if self.is_due(cfg.log_every_n_steps) or progress.val_pending or self.is_done():
                        self.log_step(epoch, loss=loss, lr=lr, grad_norm=grad_norm)
                    self.end_step()
                    if self.is_done():
                        break
        progress.log_end(first_step, cfg.patience)

    def end_step(self) -> None:
        """Validates and saves, where it is this step's turn."""
        epoch = (self.progress.global_step - 1) // self.steps_per_epoch
        if self.progress.val_pending and self.batches_val:
            self.validate(epoch)
        self.checkpoints.poll()
        asked = self.signals.take_save()
        if self.is_due(None):
            self.save_checkpoint(f"epoch_{epoch}")
        elif asked or self.is_done() or self.is_due(self.cfg.save_every_n_steps):
            self.save_checkpoint(f"step_{self.progress.global_step}")

    def is_due(self, *every_n_steps: int | None) -> bool:
        """Tells whether it is this step's turn for what comes every n steps, any of these; None: at an epoch's end."""
        return any(self.progress.global_step % (n or self.steps_per_epoch) == 0 for n in every_n_steps)

    def is_done(self) -> bool:
        """Tells whether the run ends here: all steps taken, or `patience` at its end."""
        return self.progress.global_step >= self.total_steps or self.progress.is_out_of_patience(self.cfg.patience)

    def forward_backward(self, batch: dict[str, torch.Tensor], num_tokens: int) -> torch.Tensor:
        """Adds the gradient of one micro-batch; returns its share of the loss over the step's `num_tokens` labels."""
        loss = self.loss_sum(batch) / max(num_tokens, 1)
        self.grads.backward(loss)
        return loss.detach()

    def loss_sum(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sums the loss over the label tokens of `batch` (`tokens`, `labels [b, s]`); heeds a signal to stop first."""
        self.signals.poll()
        tokens, labels = (utils.to_device(batch[name], self.device) for name in ("tokens", "labels"))
        with self.autocast:
            hidden = self.model(tokens, seq_lens=batch.get("seq_lens"), skip_output=True)  # [b, s, d]
            return training.summed_loss(self.loss_fn, self.model.output, hidden, labels, batch, self.meter.note_loss)

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Logs the mean loss over the label tokens of `dataset_val`; of several data sets that of each as well."""
        self.model.eval()
        sums = {
            name: [(self.loss_sum(batch).item(), data.num_label_tokens([batch])) for batch in batches.epoch(0)]
            for name, batches in self.batches_val.items()
        }
        self.model.train()
        checkpoint.set_rng_state(self.rng_state)  # data sets and losses may draw
        losses = training.mean_losses(sums)
        self.progress.validated(losses["val_loss"], counts=self.is_due(self.cfg.run_val_every_n_steps))
        self.metrics.log_dict({"epoch": epoch, **losses}, step=self.progress.global_step)
        self.log.info("step %d: %s", self.progress.global_step, ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))

    def log_step(self, epoch: int, **values: Any) -> None:
        """Logs the numbers of one optimizer step, and what the steps since the last time cost."""
        values |= {"epoch": epoch, "skipped_steps": self.progress.skipped_steps, **self.meter.take()}
        self.metrics.log_dict({name: float(value) for name, value in values.items()}, step=self.progress.global_step)

    def save_checkpoint(self, name: str, final: bool = False) -> None:
        """Publishes the checkpoint folder `name` under output_dir, whole or not at all."""
        state = checkpoint.gather(self.model, self.optimizer, self.lr_scheduler, asdict(self.progress), self.facts)
        write, final = self.checkpointer.save, final or self.is_done()
        self.checkpoints.save(name, self.progress, write, self.model, state, final=final)

    def cleanup(self) -> None:
        """Ends a save, closes the loggers, draws the loss curve and gives the output_dir free."""
        self.checkpoints.close()
        self.metrics.close()
        self.claim.record(self.meter.close())
        data.report_read(self.batches, *self.batches_val.values())
        training.plot_loss_curve(self.output_dir)
        self.claim.release()


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Runs the recipe."""
    recipe = FullFinetuneRecipeSingleDevice(cfg)
    recipe.setup()
    try:
        recipe.train()
    finally:
        recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())
