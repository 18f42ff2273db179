import json

import pytest

from tests.demo_run import make_run
from torchtune_lite.checkpoint import publish
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.hub import CARD, collect


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "x"
    make_run(folder)
    return folder


def test_a_model_is_what_a_loader_reads_and_a_card(run):
    contents = collect(run, "me/m")
    assert contents.folder == run / "epoch_0" and not contents.is_base_known
    assert set(contents.files) == {
        *("README.md", "config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    }
    assert contents.size("config.json") == (run / "epoch_0/config.json").stat().st_size
    assert contents.size(CARD) == len(contents.files[CARD])


def test_an_adapter_is_loaded_by_peft_from_its_base(run, tmp_path):
    """From the files as they are sent, with the base put where its repository would be."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    contents = collect(run / "epoch_0", "me/m", adapter=True, base="org/base")
    for name, file in contents.files.items():
        (tmp_path / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert config.base_model_name_or_path == "org/base"
    written = json.loads((run / "epoch_0/adapter/adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(written["base_model_name_or_path"])
    assert peft.PeftModel.from_pretrained(base, tmp_path).active_adapter == "default"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_what_came_later_is_sent_if_it_is_the_users_card_or_the_runs_curve(run, tmp_path):
    make_run(tmp_path / "y")
    (tmp_path / "y/epoch_0/README.md").write_text("mine")
    (tmp_path / "y/epoch_0/notes.txt").write_text("mine")
    (tmp_path / "y/loss_curve.png").write_bytes(b"png")
    files = collect(tmp_path / "y", "me/m").files
    assert files[CARD].read_text() == "mine" and "notes.txt" not in files and files["loss_curve.png"].is_file()


@pytest.mark.parametrize("base", ["org/base", "/models/base"])
def test_an_exported_adapter_is_sent_as_it_is_known_by_its_own_base(base, tmp_path):
    config = {"base_model_name_or_path": base}
    with publish(tmp_path / "exported") as draft:
        (draft / "adapter_config.json").write_text(json.dumps(config))
        (draft / "adapter_model.safetensors").write_bytes(b"a")
    if base == "/models/base":
        with pytest.raises(ConfigError, match="add --base OWNER/NAME"):
            collect(tmp_path / "exported", "me/m")
    files = collect(tmp_path / "exported", "me/m", base=None if base == "org/base" else "org/base").files
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", CARD}
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "org/base"}
    assert b"library_name: peft\nbase_model: org/base\n" in files[CARD]


def test_an_exported_gguf_is_sent_with_its_own_card(tmp_path):
    with publish(tmp_path / "exported") as draft:
        (draft / "model.gguf").write_bytes(b"GGUF")
    files = collect(tmp_path / "exported", "me/m", base="org/base").files
    assert set(files) == {"model.gguf", CARD} and b"base_model_relation: quantized\n" in files[CARD]


def test_of_a_run_the_best_checkpoint_is_sent(tmp_path):
    make_run(tmp_path / "z", names=("epoch_0", "epoch_1"))
    assert collect(tmp_path / "z", "me/m").folder.name == "epoch_1"
    (tmp_path / "z/best.json").write_text('{"checkpoint": "epoch_0", "val_loss": 1.0}')
    assert collect(tmp_path / "z", "me/m").folder.name == "epoch_0"


def test_what_is_not_there_is_refused(tmp_path):
    make_run(tmp_path / "a", adapter_only=True)
    with pytest.raises(ConfigError, match="has no merged model; add --adapter to send its adapter"):
        collect(tmp_path / "a", "me/m")
    with publish(tmp_path / "f/epoch_0") as draft:
        (draft / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="has no adapter; leave --adapter out to send the model"):
        collect(tmp_path / "f", "me/m", adapter=True, base="org/base")
    (tmp_path / "f/epoch_0/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged: config.json"):
        collect(tmp_path / "f", "me/m")


def test_weights_of_an_earlier_upload_are_replaced(run):
    model, adapter = (collect(run, "me/m", adapter=adapter, base="org/base") for adapter in (False, True))
    there = ["README.md", "config.json", "q8.gguf", "training.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert model.replaced([*there, *shards, "model.safetensors"]) == shards
    assert adapter.replaced([*there, "adapter_model.safetensors", "adapter_model.bin"]) == ["adapter_model.bin"]
    assert model.replaced(there) == []


def test_an_adapter_and_what_it_is_merged_into_do_not_meet(run, tmp_path):
    model, adapter = (collect(run, "me/m", adapter=adapter, base="org/base") for adapter in (False, True))
    with pytest.raises(ConfigError, match="the repository has adapter_model.safetensors: .*; choose another repo"):
        model.replaced(["adapter_model.safetensors"])
    with pytest.raises(ConfigError, match="the repository has model.safetensors: "):
        adapter.replaced(["model.safetensors"])
    with publish(tmp_path / "exported") as draft:
        (draft / "model.gguf").write_bytes(b"GGUF")
    assert collect(tmp_path / "exported", "me/m").replaced(["model.safetensors", "other.gguf"]) == []
