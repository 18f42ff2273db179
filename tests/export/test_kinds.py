import pytest

from torchtune_lite.checkpoint import verify
from torchtune_lite.cli.verbs.export import KINDS, TYPES
from torchtune_lite.errors import ConfigError, SaveError
from torchtune_lite.export import Options, export_model, gguf, open_source
from torchtune_lite.export.kinds import WRITERS


def test_the_command_line_names_what_there_is():
    assert tuple(WRITERS) == KINDS
    assert tuple(gguf.files.KINDS) == TYPES


def test_a_folder_is_published_whole_with_a_manifest(llama, tmp_path):
    export_model(open_source(llama), "modelfile", tmp_path / "out", Options("tiny", "f16"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["MANIFEST.json", "Modelfile", "tiny-f16.gguf"]
    verify(tmp_path / "out")


def test_nothing_is_left_of_what_fails(llama, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchtune_lite.export.gguf.files._encoded", fail)
    with pytest.raises(SaveError, match="out was not saved: No space left on device"):
        export_model(open_source(llama), "gguf", tmp_path / "out", Options("tiny"))
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_what_exists_stays(llama, tmp_path):
    with pytest.raises(ConfigError, match="exists and is not overwritten; name another folder with --out"):
        export_model(open_source(llama), "hf", llama, Options("tiny"))
    with pytest.raises(ConfigError, match="--to onnx is not known; allowed are hf, adapter, lora, gguf, gguf-adapter"):
        export_model(open_source(llama), "onnx", tmp_path / "out", Options("tiny"))


@pytest.mark.parametrize("name", ["../tiny", "a/tiny", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name):
    with pytest.raises(ConfigError, match=f"--name '{name}' is not the name of a file"):
        Options(name)
