"""The parts of a run besides its model and data: dtype, seed, memory, schedules, metrics.

The checkpointers of `torchtune_lite.checkpoint` are here too, where torchtune's dotted paths put them.
"""

from torchtune_lite.checkpoint import FullModelHFCheckpointer, FullModelMetaCheckpointer
from torchtune_lite.optim import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)
from torchtune_lite.training.compiling import compile_layers
from torchtune_lite.training.environment import choose_dtype, get_dtype, get_precision, set_seed
from torchtune_lite.training.inference import Inference, build_model
from torchtune_lite.training.memory.activations import set_activations
from torchtune_lite.training.memory.usage import parameter_summary, peak_memory, reset_peak_memory, storage_summary
from torchtune_lite.training.metrics.loggers import (
    DiskLogger,
    MetricLoggerInterface,
    MetricLoggers,
    StdoutLogger,
    TensorBoardLogger,
    WandBLogger,
)
from torchtune_lite.training.metrics.loss_curve import plot_loss_curve
from torchtune_lite.training.metrics.meter import Meter
from torchtune_lite.training.profiler import Profiler, setup_torch_profiler
from torchtune_lite.training.run.checkpoints import Checkpoints
from torchtune_lite.training.run.contracts import (
    AdaptedModel,
    Loss,
    Model,
    Optimizer,
    Schedule,
    Tokenizer,
    WholeModel,
    checked_loss,
)
from torchtune_lite.training.run.progress import Progress, check_patience
from torchtune_lite.training.run.run import Run
from torchtune_lite.training.run.validation import mean_losses
from torchtune_lite.training.settings import (
    AnsweringSettings,
    AskingSettings,
    RecipeSettings,
    TrainingSettings,
)
from torchtune_lite.training.signals import Signals, StopRequested
from torchtune_lite.training.step.checks import may_step
from torchtune_lite.training.step.gradients import Gradients
from torchtune_lite.training.step.losses import summed_loss

__all__ = [
    "AdaptedModel",
    "AnsweringSettings",
    "AskingSettings",
    "Checkpoints",
    "DiskLogger",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "Gradients",
    "Inference",
    "Loss",
    "Meter",
    "MetricLoggerInterface",
    "MetricLoggers",
    "Model",
    "Optimizer",
    "Profiler",
    "Progress",
    "RecipeSettings",
    "Run",
    "Schedule",
    "Signals",
    "StdoutLogger",
    "StopRequested",
    "TensorBoardLogger",
    "Tokenizer",
    "TrainingSettings",
    "WandBLogger",
    "WholeModel",
    "build_model",
    "check_patience",
    "checked_loss",
    "choose_dtype",
    "compile_layers",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_dtype",
    "get_linear_schedule_with_warmup",
    "get_precision",
    "get_wsd_schedule",
    "may_step",
    "mean_losses",
    "parameter_summary",
    "peak_memory",
    "plot_loss_curve",
    "reset_peak_memory",
    "set_activations",
    "set_seed",
    "setup_torch_profiler",
    "storage_summary",
    "summed_loss",
]
