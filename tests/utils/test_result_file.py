import json
import os

import pytest

from torchtune_lite.errors import ConfigError, SaveError
from torchtune_lite.utils.result_file import ResultFile


def test_the_folder_is_made_and_the_file_written_whole(tmp_path):
    result = ResultFile(tmp_path / "a/b/result.json")
    assert os.listdir(tmp_path / "a/b") == []
    for score in (1, 2):
        result.write({"score": score, "text": "市"})
        assert json.loads((tmp_path / "a/b/result.json").read_text(encoding="utf-8")) == {"score": score, "text": "市"}
    assert os.listdir(tmp_path / "a/b") == ["result.json"]


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/no/such", "taken"])
def test_a_folder_that_takes_no_file_is_known_at_the_start(folder, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken/result.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="^output_dir .* cannot be used: .*; choose another folder$"):
        ResultFile(tmp_path / folder / "result.json")


def test_a_disk_that_is_full_leaves_the_old_file_and_is_one_line(tmp_path, monkeypatch):
    result = ResultFile(tmp_path / "result.json")
    result.write({"score": 1})

    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(SaveError, match=r"result.json was not written: No space left on device$"):
        result.write({"score": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"score": 1}
    assert os.listdir(tmp_path) == ["result.json"]
