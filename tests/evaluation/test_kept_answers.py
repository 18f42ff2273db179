import json
import os

import pytest

from torchtune_lite.errors import SaveError
from torchtune_lite.evaluation.kept_answers import KeptAnswers, made_by


def test_answers_outlast_a_kill_whose_torn_line_is_left_out(tmp_path):
    path = tmp_path / "answers.jsonl"
    file = KeptAnswers(path, "x")
    file.add(3, [1, 2], "市\u2028\nb")
    file.add(4, [1], "c")
    with path.open("a") as torn:
        torn.write('{"row": 5, "pro')
    again = KeptAnswers(path, "x")
    assert again.find(3, [1, 2]) == "市\u2028\nb" and again.find(4, [1]) == "c"
    assert again.find(3, [1, 3]) is None and again.find(5, [1]) is None
    again.add(5, [1], "d")
    assert [json.loads(line).get("row") for line in path.read_text().strip().split("\n")] == [None, 3, 4, 5]
    assert KeptAnswers(path, "y").find(3, [1, 2]) is None
    KeptAnswers(path, "y").remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[1, 2]\n", "nonsense", '{"made_by": "x"}\n{"row": 1}\n'])
def test_a_file_of_another_kind_is_begun_anew(content, tmp_path):
    (tmp_path / "a").write_text(content)
    assert KeptAnswers(tmp_path / "a", "x").find(1, []) is None
    assert (tmp_path / "a").read_text() == '{"made_by": "x"}\n'


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
    file = KeptAnswers(tmp_path / "a", "x")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(SaveError, match="a was not written: No space left"):
        KeptAnswers(tmp_path / "a", "x")
    file._file.close()


def test_another_setting_or_another_file_of_the_model_is_another_maker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").write_bytes(b"a")
    settings = {"checkpointer": {"checkpoint_dir": "base", "files": ["no"]}, "dtype": "fp32"}
    first = made_by(settings)
    assert made_by(settings) == first != made_by(settings | {"dtype": "bf16"})
    os.utime("base/model.safetensors", (1, 1))
    assert made_by(settings) != first
