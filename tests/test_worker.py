"""What a process knows of the others, and its last words."""

import json
import subprocess
import sys

from torchtune_lite import worker


def test_a_process_is_alone_unless_all_is_there(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set it
    assert worker.num_processes() == 1 and worker.rank() == 0
    for name, value in {"RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert worker.num_processes() == 4 and worker.rank() == 3


def test_last_words_are_written_for_torchrun_and_the_process_ends_at_once(tmp_path):
    code = "import atexit; from torchtune_lite import worker; atexit.register(print, 'late'); print('said', end='')"
    code += "; worker.leave('error: x', 'Traceback\\n', 3)"
    file = tmp_path / "error.json"
    environment = {"TORCHELASTIC_ERROR_FILE": str(file), "RANK": "2", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said")
    found = json.loads(file.read_text())
    assert found["message"]["message"] == "error: x"
    assert found["message"]["extraInfo"]["py_callstack"] == "Traceback\nerror: x"
    assert found["end"]["rank"] == 2 and found["end"]["code"] == 3 and found["end"]["line"] == "error: x"
