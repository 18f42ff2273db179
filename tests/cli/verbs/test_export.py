import pytest

from tests.demo_run import make_run
from tests.export.models import BASE
from torchtune_lite.cli.main import start
from torchtune_lite.errors import CheckpointError, ConfigError


def test_a_model_is_exported_beside_it_or_where_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start("export", str(BASE), "--to", "gguf", "--type", "f16", "--out", "out", "--name", "demo")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "out has MANIFEST.json, demo-f16.gguf"
    assert said[1].startswith("log-probabilities above 1 % are off from the source's by at most ")
    (tmp_path / "model").symlink_to(BASE)
    with pytest.raises(ConfigError, match="out exists and is not overwritten"):
        start("export", str(BASE), "--to", "hf", "--out", "out")


def test_without_out_it_lies_in_the_folder(tmp_path, capsys):
    start("export", str(BASE), "--to", "hf", "--out", str(tmp_path / "model"))
    start("export", str(tmp_path / "model"), "--to", "modelfile")
    assert (tmp_path / "model/export/modelfile-q8_0/model-q8_0.gguf").is_file()
    assert "model/export/modelfile-q8_0 has MANIFEST.json, Modelfile, model-q8_0.gguf" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["adapter", "gguf-adapter"])
def test_of_a_run_that_has_a_merged_model_too_the_adapter_is_found(kind, tmp_path, capsys):
    make_run(tmp_path / "x")
    start("export", str(tmp_path / "x"), "--to", kind)
    file = {"adapter": "adapter_model.safetensors", "gguf-adapter": "x-lora.gguf"}[kind]
    assert (tmp_path / "x/export" / kind / file).is_file() and file in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["nowhere", "--to", "gguf"], CheckpointError, "nowhere is not a folder; expected"),
        ([str(BASE), "--to", "onnx"], ConfigError, "invalid choice: 'onnx'"),
        ([str(BASE)], ConfigError, "the following arguments are required: --to"),
        ([str(BASE), "--to", "adapter"], ConfigError, "is a merged model and has no adapter"),
    ],
)
def test_a_mistake_is_one_line(words, error, message):
    with pytest.raises(error, match=message):
        start("export", *words)
