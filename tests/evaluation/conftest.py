"""Tasks of the harness over local files, and the embedded model, read by this library and by transformers."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from torchtune_lite import assets, config
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.data import ModelTokenizer, load_tokenizer
from torchtune_lite.evaluation import as_harness_model, find_tasks
from torchtune_lite.modules import TransformerDecoder

LENGTH = 40  # tokens that the harness takes; some contexts and some texts are longer
LLAMA2 = "torchtune_lite.models.llama2.Llama2ChatTemplate"
BASE = Path(assets.__file__).parent / "base"
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read when the libraries are imported
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp())

ROWS = [
    {"question": "台北市 信義區", "choices": ["市府路", "路", "中山北路二段"], "label": 2, "answer": "信義區"},
    {"question": "高雄市永安區金信西路 ", "choices": ["一段", "二段", "5樓"], "label": 0, "answer": "高雄市"},
    {"question": "828高雄市", "choices": ["永安區", "a", "b"], "label": 1, "answer": "市"},
    {"question": "a b", "choices": ["c", "d", "e"], "label": 1, "answer": "c"},
    {"question": "新北市 林口區 北才路 192巷 419-26號27F", "choices": ["27", "F", "樓"], "label": 0, "answer": "F"},
]
COMMON = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test"}
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_mutual_info")],
        "num_fewshot": 1,
        "fewshot_split": "test",
    },
    "local_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["1", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "local_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{answer}} {{question}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind, whose data lie beside it."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, task in TASKS.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **COMMON, **task}))
    return path


@pytest.fixture(scope="session")
def their_base() -> transformers.LlamaForCausalLM:
    """The embedded model, read by transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def base_model() -> TransformerDecoder:
    """The embedded model."""
    checkpointer = FullModelHFCheckpointer(str(BASE))
    with torch.device("meta"):
        builder = {"_component_": "torchtune_lite.models.from_checkpoint"}
        model = config.instantiate(builder, defaults=checkpointer.decoder_args)
    checkpointer.load(model, device=torch.device("cpu"), dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def base_tokenizer() -> ModelTokenizer:
    """Its tokenizer, without a template."""
    return load_tokenizer(BASE, prompt_template=None)


@pytest.fixture(scope="session")
def no_environment() -> Iterator[None]:
    """The harness asks pip for all packages, for the record: more than a second of each of its runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
        yield


@pytest.fixture(scope="session")
def manager(task_folder: Path, no_environment: None) -> Any:
    """The tasks of the folder, as the harness keeps them."""
    return find_tasks(list(TASKS), task_folder)


@pytest.fixture(scope="session")
def chatting() -> ModelTokenizer:
    """Its tokenizer, with Llama 2's template."""
    return load_tokenizer(BASE, prompt_template=LLAMA2)


@pytest.fixture(scope="session")
def ours(base_model: TransformerDecoder, chatting: ModelTokenizer) -> Any:
    """The embedded model, as the harness asks it."""
    return as_harness_model(base_model, chatting, max_seq_len=LENGTH, batch_size=2, seed=0)
