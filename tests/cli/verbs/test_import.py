import pytest

from tests.export.models import BASE
from torchtune_lite.cli.main import start
from torchtune_lite.errors import CheckpointError, ConfigError


def test_what_was_exported_is_imported(tmp_path, capsys):
    start("export", str(BASE), "--to", "gguf", "--out", str(tmp_path / "out"), "--name", "demo")
    start("import", str(tmp_path / "out/demo-q8_0.gguf"), str(tmp_path / "back"))
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'back'} has llama, 4 layers of 128, in bfloat16\n")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in (tmp_path / "back").iterdir()
    }
    with pytest.raises(ConfigError, match="back exists and is not overwritten"):
        start("import", str(tmp_path / "out/demo-q8_0.gguf"), str(tmp_path / "back"))


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.gguf is not a file"):
        start("import", "nothing.gguf", str(tmp_path / "back"))
    (tmp_path / "no.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(CheckpointError, match="is not a GGUF file, or truncated"):
        start("import", str(tmp_path / "no.gguf"), str(tmp_path / "back"))
