"""The builders of this package and of known libraries that a YAML may name, each by one dotted path.

A path is a module of these tables and a name that the module offers; no attribute of an object, no other module. What a
user also trusts, above all code of their own, is in `trust`.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

PACKAGE = "torchtune_lite"
FAMILIES = f"{PACKAGE}.models"
DATA = f"{PACKAGE}.data"
MOVED = {
    "torchtune.modules.transforms.tokenizers": DATA,
    "torchao.prototype.low_bit_optim": "torchao.optim",
    **{f"{package}.training.lr_schedulers": f"{PACKAGE}.optim" for package in ("torchtune", PACKAGE)},
    **{f"{package}.training.metric_logging": f"{PACKAGE}.training" for package in ("torchtune", PACKAGE)},
}
"""Modules that torchtune's configs name and that stand elsewhere now; all of its own others, below this package."""

_CHECKPOINTERS = ("FullModelHFCheckpointer", "FullModelMetaCheckpointer")
_LOGGERS = ("DiskLogger", "StdoutLogger", "TensorBoardLogger", "WandBLogger")
_SCHEDULES = (
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_linear_schedule_with_warmup",
    "get_wsd_schedule",
)
COMPONENTS: dict[str, tuple[str, ...]] = {
    f"{PACKAGE}.checkpoint": _CHECKPOINTERS,
    DATA: (
        *("AlpacaToMessages", "ChosenRejectedToMessages", "InputOutputToMessages"),
        *("OpenAIToMessages", "ShareGPTToMessages"),
        *("ChatMLTemplate", "ChatTemplate", "GrammarErrorCorrectionTemplate", "Llama2ChatTemplate"),
        *("MistralChatTemplate", "PromptTemplate", "QuestionAnswerTemplate", "SummarizeTemplate"),
        *("HuggingFaceBaseTokenizer", "HuggingFaceModelTokenizer", "Llama3Tokenizer"),
        *("SentencePieceTokenizer", "TikTokenBaseTokenizer", "load_tokenizer"),
        *("padded_collate_dpo", "padded_collate_sft", "padding_free_collate_sft"),
    ),
    f"{PACKAGE}.datasets": (
        *("alpaca_cleaned_dataset", "alpaca_dataset", "chat_dataset", "cnn_dailymail_articles_dataset"),
        *("detected_dataset", "grammar_dataset", "hh_rlhf_helpful_dataset", "instruct_dataset", "preference_dataset"),
        *("samsum_dataset", "sft_dataset", "slimorca_dataset", "stack_exchange_paired_dataset"),
        *("text_completion_dataset", "wikitext_dataset"),
    ),
    FAMILIES: ("from_checkpoint", "tokenizer_of_checkpoint"),
    f"{PACKAGE}.modules.loss": ("CEWithChunkedOutputLoss", "LinearCrossEntropyLoss"),
    f"{PACKAGE}.optim": ("CPUOffloadAdamW", "MasterAdamW", "PagedAdamW", "StochasticAdamW", *_SCHEDULES),
    f"{PACKAGE}.peft": ("AdaLoRA", "IA3", "VeRA", "PTuning", "PrefixTuning", "PromptTuning"),
    f"{PACKAGE}.training": (*_CHECKPOINTERS, *_LOGGERS, *_SCHEDULES, "Profiler", "setup_torch_profiler"),
}
"""The offered names of modules of this package; model families, which offer their builders, are not listed."""

_OPTIMIZER = ("torch.optim", "Optimizer")
KINDS = {
    "torch.nn": ("torch.nn.modules.loss", "_Loss"),
    "torch.optim": _OPTIMIZER,
    "torch.optim.lr_scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
    "torchao.optim": _OPTIMIZER,
    "bitsandbytes.optim": _OPTIMIZER,
}
"""The offered classes of other libraries: those of the library that derive from this one."""

ALLOWED = (
    f"the builders of {PACKAGE}, the losses of torch.nn, the optimizers and schedules of torch.optim, the optimizers "
    "of torchao.optim and bitsandbytes.optim, and what you define in a module of the working directory"
)


def translated(path: str) -> str:
    """Return the path that a path of torchtune's stands for here: `torchtune.` in front means this package."""
    module, _, name = path.rpartition(".")
    if module in MOVED:
        return f"{MOVED[module]}.{name}"
    return path.replace("torchtune.", f"{PACKAGE}.", 1) if path.startswith("torchtune.") else path


def has(module: str) -> bool:
    """Return whether a module may offer components; import nothing."""
    return module in COMPONENTS or module in KINDS or module.rpartition(".")[0] == FAMILIES


def offered_names(module: ModuleType) -> list[str]:
    """Return the names that an imported module offers to a YAML."""
    name = module.__name__
    if name in COMPONENTS:
        return list(COMPONENTS[name])
    if name not in KINDS:  # a module of model families
        return list(module.__all__) if hasattr(module, "BUILDERS") else []
    (home, base), package = KINDS[name], name.partition(".")[0]
    base = getattr(importlib.import_module(home), base)
    return [
        each
        for each, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, base) and found is not base
        if each[0] != "_" and found.__module__.partition(".")[0] == package
    ]


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in list(sys.modules.items()) if module is not None and has(name)}


def is_builder(found: Any) -> bool:
    """Return whether a module that is loaded offers an object, or a `functools.partial` of it."""
    return any(
        found is each or found is getattr(each, "func", None)
        for module in _loaded().values()
        for each in (getattr(module, name) for name in offered_names(module))
    )


def elsewhere(path: str) -> list[str]:
    """Return the paths under which modules of the same package offer the last name of one that is not offered."""
    top, last = path.partition(".")[0], path.rpartition(".")[2]
    if top == PACKAGE:
        importlib.import_module(FAMILIES)
    names = {module: offered_names(each) for module, each in _loaded().items()} | COMPONENTS
    modules = [module for module in names if module.startswith(f"{top}.") and last in names[module]]
    alike = [module for module in modules if module.rpartition(".")[2] in last]  # of the names of a family's module
    return [f"{module}.{last}" for module in alike or modules]
