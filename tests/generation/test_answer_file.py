import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchtune_lite.errors import ConfigError, SaveError
from torchtune_lite.generation import AnswerFile, made_by
from torchtune_lite.utils import file_lock


def write(path, *results, maker="m", **options):
    file = AnswerFile(path, maker, **options)
    for result in results:
        file.write(result)
    file.close()


def read(path, maker="m", **options):
    file = AnswerFile(path, maker, **options)
    results = list(file.results())
    file.close()
    return results


RESULTS = [{"row": 3, "answer": "市\u2028\nb"}, {"row": 4, "problem": "c"}]


def test_results_outlast_a_kill_whose_torn_line_is_left_out(tmp_path):
    path = tmp_path / "new/out.jsonl"
    write(path, *RESULTS)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [
        {**each, "made_by": "m"} for each in RESULTS
    ]
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):  # wherever it was killed
        path.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n")
        assert [each["row"] for each in read(path)] == [3, 4][:left]
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:left])
    write(path, {"row": 5, "answer": "d"})
    assert [each["row"] for each in read(path)] == [3, 4, 5]


LINE = '{"row": 0, "answer": "a", "made_by": "m"}\n'


@pytest.mark.parametrize(
    "content",
    [
        "anything",
        "anything\n",
        "\0" * 10**6,
        LINE + "\n",
        '{"prompt": "A"}',
        "[]\n",
        '{"row": 0}\n',
        LINE + "torn off",
        LINE + LINE.replace("m", "n"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is_or_begun_anew(content, tmp_path):
    (tmp_path / "out").write_text(content)
    with pytest.raises(ConfigError, match="out holds something else than answers by this model and these settings; ch"):
        AnswerFile(tmp_path / "out", "m")
    assert (tmp_path / "out").read_text() == content
    assert read(tmp_path / "out", anew=True) == [] and (tmp_path / "out").read_text() == ""


def test_what_another_model_gave_is_something_else(tmp_path):
    write(tmp_path / "out", *RESULTS)
    with pytest.raises(ConfigError, match="holds something else"):
        AnswerFile(tmp_path / "out", "another")


def test_two_processes_do_not_write_one_file(tmp_path):
    script = "import sys; from pathlib import Path; from torchtune_lite.generation import AnswerFile\n"
    script += "file = AnswerFile(Path('out'), 'm'); print('has it', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"has it\n"
        with pytest.raises(ConfigError, match="out is being written by another process; wait for it, or choose anoth"):
            AnswerFile(tmp_path / "out", "m")
        process.stdin.close()
    write(tmp_path / "out", *RESULTS)


def test_where_there_are_no_locks_it_works_without(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "fcntl", None)
    write(tmp_path / "out", *RESULTS)
    assert len(read(tmp_path / "out")) == 2


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    no_file = "it does not keep what is written"
    for path, reason in ((tmp_path / "file/out", "File exists"), (tmp_path, no_file), (Path(os.devnull), no_file)):
        with pytest.raises(ConfigError, match=f"^{path} cannot be used: {reason}; choose another file$"):
            AnswerFile(path, "m")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_is_one_line(tmp_path):
    file = AnswerFile(tmp_path / "out", "m")
    with open("/dev/full", "wb", buffering=0) as full:
        file._file, own = full, file._file
        with pytest.raises(SaveError, match="out was not written: No space left on device; make room, and start again"):
            file.write(RESULTS[0])
    own.close()


def test_removed_it_is_gone(tmp_path):
    file = AnswerFile(tmp_path / "out", "m")
    file.remove()
    assert os.listdir(tmp_path) == []


def test_another_setting_or_another_file_of_the_model_is_another_maker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").write_bytes(b"a")
    settings = {"checkpointer": {"checkpoint_dir": "base", "files": ["no"]}, "dtype": "fp32"}
    first = made_by(settings)
    assert made_by(settings) == first != made_by(settings | {"dtype": "bf16"})
    os.utime("base/model.safetensors", (1, 1))
    assert made_by(settings) != first
