"""What a YAML may name: every path below a known package is tried, and only builders are found."""

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

import torchtune_lite
from torchtune_lite import checkpoint, data, training
from torchtune_lite.checkpoint.checkpointer import Checkpointer
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.config import DottedPath
from torchtune_lite.config.registry import lookup as dotted
from torchtune_lite.config.registry import offered as registry
from torchtune_lite.config.registry import trust
from torchtune_lite.data.conversations import ConversationToMessages
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer
from torchtune_lite.errors import ConfigError
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import Method, VirtualTokensMethod

ROOT = Path(__file__).resolve().parents[3]
PREFIXES = ("torchtune_lite", "torch.nn", "torch.optim", "torch.hub", "torch.serialization", "torchao", "bitsandbytes")
MADE = (
    *(TransformerDecoder, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.nn.modules.loss._Loss),
    *(training.MetricLoggerInterface, training.Profiler, Checkpointer, data.SFTDataset, data.PreferenceDataset),
    *(ModelTokenizer, data.HuggingFaceBaseTokenizer, data.TikTokenBaseTokenizer),
    *(data.PromptTemplate, data.Llama2ChatTemplate, data.ChatTemplate),
    *(data.AlpacaToMessages, data.InputOutputToMessages, ConversationToMessages, data.ChosenRejectedToMessages),
    Method,
    VirtualTokensMethod,
)
OTHERS = (
    LinearCrossEntropyLoss,
    *(data.padded_collate_dpo, data.padded_collate_sft, data.padding_free_collate_sft),
)


def is_builder(found: object) -> bool:
    """Tells by its class, or by what it says it returns, whether an object makes what a recipe takes."""
    target = found.func if isinstance(found, functools.partial) else found
    made = target if inspect.isclass(target) else inspect.signature(target, eval_str=True).return_annotation
    return target in OTHERS or (inspect.isclass(made) and issubclass(made, MADE) and not inspect.isabstract(target))


def reachable(prefix: str) -> Iterator[str]:
    """Every attribute of the modules below a prefix that are loaded, and every attribute of their classes."""
    for name, module in sorted(sys.modules.items()):
        if module is None or not f"{name}.".startswith(f"{prefix}."):
            continue
        for attribute, value in list(vars(module).items()):
            yield f"{name}.{attribute}"
            if inspect.isclass(value) and value.__module__ == name:
                yield from (f"{name}.{attribute}.{each}" for each in vars(value))


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What is found under each path that can be reached."""
    for module in pkgutil.walk_packages(torchtune_lite.__path__, "torchtune_lite."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in registry.KINDS:
        importlib.import_module(name)
    found, tried = {}, 0
    with pytest.MonkeyPatch.context() as patch, trust.trusting([], "recipe.py"):
        patch.setattr(dotted, "_refused", str)  # the messages take most of the time
        patch.setattr(dotted, "_listed", lambda *_: "")
        for path in (path for prefix in PREFIXES for path in reachable(prefix)):
            tried += 1
            try:
                found[path] = dotted.find(path)
            except ConfigError:
                continue
    assert tried > 10_000
    return found


def test_nothing_but_builders_can_be_reached_below_the_packages_that_are_known(found):
    assert [path for path, each in found.items() if not is_builder(each)] == []


def test_what_is_reached_is_what_the_registry_offers(found):
    offered = {f"{module}.{name}" for module, names in registry.COMPONENTS.items() for name in names}
    modules = {name: module for name, module in sys.modules.items() if name.startswith("torchtune_lite.models.")}
    families = {f"{name}.{each}" for name, module in modules.items() for each in registry.offered_names(module)}
    assert {path for path in found if path.startswith("torchtune_lite.")} == offered | families
    assert {"torchtune_lite.models.llama2.qlora_llama2_7b", "torchtune_lite.models.qwen3.lora_qwen3"} <= families


def test_the_check_knows_what_is_no_builder():
    """The control: what YAMLs have done harm with, and bases that nothing is made of."""
    assert not any(map(is_builder, (disk.remove, torch.load, checkpoint.publish, dict, ModelTokenizer, data.Rows)))


@pytest.mark.parametrize("package", ["torchtune_lite", "torch", "torchao", "bitsandbytes"])
def test_a_module_that_is_not_listed_is_not_even_imported(package, monkeypatch):
    monkeypatch.setattr(registry, "elsewhere", lambda path: [])
    folders = importlib.util.find_spec(package).submodule_search_locations
    names = [f"{package}.{each.name}" for each in pkgutil.iter_modules(folders)]
    assert len(names) > 5
    before = set(sys.modules)
    for name in names:
        if not registry.has(name):
            with pytest.raises(ConfigError, match=rf"'{name}\.anything' is not an allowed component"):
                dotted.find(f"{name}.anything")
    assert {each for each in set(sys.modules) - before if each.startswith(tuple(names))} == set()


def test_an_argument_that_names_an_object_is_known_as_one(found):
    """So that `tune validate` looks it up as it looks up a `_component_`."""
    named = [
        (path, parameter.annotation)
        for path, each in found.items()
        if path.startswith("torchtune_lite.")
        for name, parameter in inspect.signature(each, eval_str=True).parameters.items()
        if name in ("filter_fn", "message_transform", "prompt_template")
    ]
    assert len(named) > 15
    assert [path for path, hint in named if DottedPath not in get_args(hint)] == []


PAGES = [
    *(ROOT / "README.md", ROOT / "tests/error_files.py", ROOT / "tests/test_torchtune_configs.py"),
    *(page for page in ROOT.glob("docs/*.md") if page.name != "errors.md"),
    *(page for folder in ("configs", "tests/recipes") for page in (ROOT / folder).rglob("*.*") if page.is_file()),
]
COMPONENT = re.compile(r"_component_[\"']?: [\"']?((?:torch\w*|bitsandbytes)(?:\.\w+)+)(?!\.?[\w{])")
NAMED = sorted({path for page in PAGES for path in COMPONENT.findall(page.read_text("utf-8", "replace"))})
VOCABULARY = [
    *("torchtune.datasets.alpaca_cleaned_dataset", "torchtune.datasets.alpaca_dataset"),
    *("torchtune.datasets.stack_exchange_paired_dataset", "torchtune.datasets.text_completion_dataset"),
    *("torchtune.models.llama2.llama2_7b", "torchtune.models.llama2.lora_llama2_7b"),
    *("torchtune.models.llama2.qlora_llama2_70b", "torchtune.models.llama2.llama2_tokenizer"),
    *("torchtune.models.llama2.Llama2ChatTemplate", "torchtune.data.QuestionAnswerTemplate"),
    *("torchtune.data.padded_collate_sft", "torchtune.data.ShareGPTToMessages"),
    *("torchtune.modules.loss.LinearCrossEntropyLoss", "torchtune.modules.loss.CEWithChunkedOutputLoss"),
    *("torchtune.training.FullModelHFCheckpointer", "torchtune.training.FullModelMetaCheckpointer"),
    *("torchtune.training.metric_logging.DiskLogger", "torchtune.training.metric_logging.WandBLogger"),
    *("torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup", "torchtune.training.setup_torch_profiler"),
    *("torchtune.modules.transforms.tokenizers.HuggingFaceModelTokenizer", "torch.optim.AdamW", "torch.optim.LBFGS"),
    *("torch.optim.lr_scheduler.CosineAnnealingLR", "torch.nn.CrossEntropyLoss", "bitsandbytes.optim.PagedAdamW"),
    *("bitsandbytes.optim.PagedAdamW8bit", "torchao.optim.AdamW8bit", "torchao.prototype.low_bit_optim.AdamW8bit"),
]


@pytest.mark.parametrize("path", VOCABULARY)
def test_what_configs_of_torchtune_name_is_found(path):
    assert is_builder(dotted.find(path))


def test_what_configs_docs_and_tests_name_is_found():
    assert len(NAMED) > 15
    assert [path for path in NAMED if not is_builder(dotted.find(path))] == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.optim.AdamWW", r"^cannot find 'AdamWW' in torch.optim; did you mean 'AdamW'\? \(it has: ASGD, "),
        ("torchtune.data.Rows", r"^'Rows' of torchtune_lite.data is not an allowed component.* \(it has: AlpacaToMess"),
        ("torch.optim", r"^'torch.optim' is a module; name a class or function of it \(it has: ASGD, "),
        ("torch.optim.adamw.AdamW", r"; did you mean 'torch.optim.AdamW'\?$"),
        ("torchtune.dataset.chat_dataset", r"; did you mean 'torchtune_lite.datasets.chat_dataset'\?$"),
        ("torchtune.models.llama2_7b", r"; did you mean 'torchtune_lite.models.llama2?.llama2_7b'\?$"),
        ("torchtune.models.llama3_1.llama3_1_8", r"; did you mean 'llama3_1_8b'\?$"),
        ("torchtune.models.flux.flux_1_dev", "flux is a family that is not served: it sees or makes images$"),
    ],
)
def test_a_slip_is_answered_with_what_is_offered(path, message):
    with pytest.raises(ConfigError, match=message):
        dotted.find(path)


def test_a_library_that_has_no_such_module_is_not_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(registry.KINDS, "torch.no_such_module", ("torch.optim", "Optimizer"))
    with pytest.raises(ConfigError, match="the installed torch has no torch.no_such_module"):
        dotted.find("torch.no_such_module.Adam")
