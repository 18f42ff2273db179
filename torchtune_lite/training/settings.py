"""The keys that recipes share: a recipe's `Settings` derives from one of these, and adds or narrows what is its own.

A class as annotation, or `Any`, is a `_component_`. `tune run RECIPE --help` shows all keys, with these comments.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_lite import config
from torchtune_lite.data import COLLATES
from torchtune_lite.training.metrics.loggers import MetricLoggerInterface
from torchtune_lite.training.profiler import Profiler
from torchtune_lite.training.run.contracts import Loss, Model, Optimizer, Schedule, Tokenizer


@dataclass(kw_only=True)
class RecipeSettings:
    """The keys of every recipe that runs a model."""

    model: Any = config.component()  # sizes left out come from the checkpoint
    tokenizer: Any = config.component()  # with the prompt_template of the training
    checkpointer: Any = config.component()  # reads the model

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; a missing device is an error
    dtype: str = config.key("auto", choices=("auto", "fp32", "bf16"))  # auto: bf16 where it is native, else fp32
    log_level: str = config.key("INFO", choices=("DEBUG", "INFO", "WARNING", "WARN", "ERROR"))  # the lowest level shown


@dataclass(kw_only=True)
class AskingSettings(RecipeSettings):
    """The keys of every recipe that asks a model as it was trained."""

    system: str | None = None  # the system prompt, where there is no other; null: none
    question_template: str | None = None  # a text in which {question} stands for each question; null: it stands alone
    int8: bool = False  # True: weights rounded to int8, for speed on a CPU

    def question(self, text: str) -> str:
        """Put a question into `question_template`."""
        from torchtune_lite.generation import put_question  # of no use to a training

        return put_question(self.question_template, text)


@dataclass(kw_only=True)
class AnsweringSettings(AskingSettings):
    """The keys of every recipe that answers what a person asks."""

    max_new_tokens: int = config.key(512, minimum=1)  # longer answers are cut
    temperature: float = config.key(0.6, minimum=0)  # 0: always the likeliest token
    top_k: int | None = config.key(None, minimum=1)  # draw from the k likeliest; null: from all
    top_p: float | None = config.key(None, above=0)  # draw from the likeliest that make up this share; null: from all
    min_p: float | None = config.key(None, minimum=0)  # draw from those of this share of the likeliest's; null: all
    repetition_penalty: float = config.key(1.0, above=0)  # above 1.0, what was said before becomes less likely
    seed: int | None = None  # null: drawn and logged

    @property
    def sampling(self) -> dict[str, Any]:
        """The keys that say how an answer is drawn, as arguments of `generation.Sampling`; but for the seed."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class Parallel:
    """How several processes train together, which `tune run --nproc_per_node N` starts."""

    data: str = config.key("auto", choices=("auto", "ddp", "fsdp", "hsdp"))  # whole model, a share of it, of a replica
    reshard_after_forward: bool = True  # with fsdp, hsdp; False: keep layers until their backward pass, faster
    replicas: int | None = config.key(None, minimum=1)  # with hsdp, whole models; null: one on each node
    timeout: float = config.key(600.0, above=0)  # seconds that a process waits for another before the run ends


@dataclass(kw_only=True)
class TrainingSettings(RecipeSettings):
    """The keys of every recipe that trains."""

    model: Model = config.component()  # sizes left out come from the checkpoint
    tokenizer: Tokenizer = config.component()  # with the prompt template and max_seq_len
    checkpointer: Any = config.component()  # reads the base model, writes checkpoints
    dtype: str = config.key("auto", choices=("auto", "fp32", "bf16", "fp16"))  # auto: bf16 where native, else fp32

    output_dir: str | Path  # for this run only
    resume_from_checkpoint: bool | str | Path = False  # True, auto: the newest in output_dir; or a checkpoint folder
    save_every_n_steps: int | None = config.key(None, minimum=1)  # optimizer steps; null: at the end of each epoch only
    keep_last_n_checkpoints: int | None = config.key(None, minimum=1)  # and the best and the resumed one; null: all
    enable_async_checkpointing: bool = False  # True: train on during a save, with a copy of the trained weights
    verify_saves: str | None = config.key("first_and_last", choices=("first_and_last", "all"))  # saves; null: none

    dataset: Any = config.component("tokenizer")  # one, or a list of them
    dataset_weights: list[float] | None = None  # shares of a list's data sets in an epoch; null: each sample once
    dataset_val: Any = config.component("tokenizer", default=None, named=True)  # one, a list, or by name; null: none
    dataset_eval: Any = config.component("tokenizer", default=None, named=True)  # answered and scored; null: none
    run_val_every_n_steps: int | None = config.key(None, minimum=1)  # optimizer steps; besides saves and epochs' ends
    patience: int | None = config.key(None, minimum=1)  # validations without a better loss that end the run; null: none
    batch_size: int = config.key(2, minimum=1)  # sequences in a micro-batch
    batch_size_val: int | None = config.key(None, minimum=1)  # null: batch_size
    shuffle: bool = True  # a new order each epoch, a function of seed and epoch
    collate: str = config.key("padding_free", choices=tuple(COLLATES))  # samples joined in a row; or padded
    group_by_length: bool = False  # True: samples of similar length in a micro-batch, for collate: padded
    num_workers: int = config.key(0, minimum=0)  # processes that make micro-batches ahead of the step
    seed: int | None = None  # null: drawn, logged and written to config.yaml

    epochs: int = config.key(1, minimum=1)  # passes over the data set
    max_steps_per_epoch: int | None = config.key(None, minimum=1)  # optimizer steps; null: the whole data set
    gradient_accumulation_steps: int = config.key(1, minimum=1)  # micro-batches in an optimizer step
    clip_grad_norm: float | None = config.key(None, above=0)  # largest norm; null: not clipped, but logged
    on_nonfinite: str = config.key("stop", choices=("stop", "skip"))  # at a nan step; three in a row stop the run
    loss: Loss = config.component(default="torchtune_lite.modules.loss.LinearCrossEntropyLoss")  # summed
    optimizer: Optimizer = config.component("params")  # with the learning rate, lr
    neftune_noise_alpha: float | None = config.key(None, above=0)  # noise on the embeddings, 5 to 15; null: none
    optimizer_in_bwd: bool = False  # True: step in the backward pass, without kept gradients; clipped one by one
    lr_scheduler: Schedule = config.component("optimizer", "num_training_steps", default=None)  # null: constant

    parallel: Parallel = config.mapping(Parallel)  # data: auto, ddp, fsdp or hsdp; and its details
    mixed_precision: bool = False  # True: weights in fp32, computation in dtype
    compile: bool = False  # True: torch.compile of each layer; the first step then takes up to minutes
    enable_activation_checkpointing: bool = False  # True: recompute activations: less memory, about a third slower
    ac_mode: str | None = config.key(None, choices=("full", "selective"))  # selective: only each ac_option-th layer
    ac_option: int | str | None = None  # with ac_mode: selective, a number
    memory_budget: float | str | None = None  # auto, or GB: recompute as few layers as the budget allows
    enable_activation_offloading: bool = False  # True: move activations to the host's memory, on a GPU

    metric_logger: MetricLoggerInterface = config.component(default=None)  # metrics.jsonl is always written
    log_every_n_steps: int = config.key(1, minimum=1)  # optimizer steps; besides validated ones and the last
    log_peak_memory_stats: bool = True  # with the metrics
    profiler: Profiler = config.component(default=None)  # traces some steps
    profile: bool = False  # True: the same with its defaults, under output_dir/profile
