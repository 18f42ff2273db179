"""`tune download` from a hub in this process: the few addresses of the Hugging Face hub that it needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.hub import FILES, SHA, environment, serving
from torchtune_lite.cli.verbs import download
from torchtune_lite.errors import CheckpointError, ConfigError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub():
    server = serving()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def tune_download(hub, folder):
    """Runs the command against the hub in a process of its own, with no token unless one is given."""

    def run(*words, token=None):
        command = [sys.executable, "-m", "torchtune_lite", "download", *words]
        env = environment(hub, folder / "home", token)
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)

    return run


def fetched(hub):
    return [path.rpartition("/")[2] for command, path, *_ in hub.seen if command == "GET" and "resolve" in path]


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_repository_comes_whole_but_for_weights_in_other_formats(tune_download, hub, folder):
    done = tune_download("o/m", "--output-dir", "m", token="hf_secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert files(folder / "m") == {
        name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.model")
    }
    assert done.stdout.splitlines() == [
        "left out: original/consolidated.00.pth, pytorch_model.bin",
        f"m has 3 files of o/m ({SHA[:12]})",
    ]
    assert {token for *_, token in hub.seen} == {"Bearer hf_secret"}
    assert not any(b"hf_secret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    hub.seen.clear()
    assert tune_download("o/m", "--output-dir", "m").returncode == 0
    assert fetched(hub) == [] and {token for *_, token in hub.seen} == {None}


def test_a_download_that_broke_off_goes_on_where_it_stopped(tune_download, hub, folder):
    hub.breaks_after = 11_000_000  # huggingface_hub writes 10 MiB at a time
    broken = tune_download("o/m", "--output-dir", "m")
    last = broken.stderr.splitlines()[-1]  # huggingface_hub says before that it tries again
    assert broken.returncode == 4 and last.startswith("tune: error: cannot download o/m: ")
    assert last.endswith("run the same command again to go on where it stopped") and "Traceback" not in broken.stderr
    assert "model.safetensors" not in files(folder / "m")
    hub.down, hub.breaks_after = False, None
    hub.seen.clear()
    assert tune_download("o/m", "--output-dir", "m").returncode == 0
    assert files(folder / "m")["model.safetensors"] == FILES["model.safetensors"]
    ranges = [first for command, path, first, _ in hub.seen if command == "GET" and path.endswith("safetensors")]
    assert len(ranges) == 1 and int(re.match(r"bytes=(\d+)-", ranges[0])[1]) > 0


def test_the_token_stays_with_the_hub(tune_download, hub, folder):
    storage = serving()
    hub.storage = f"http://127.0.0.1:{storage.server_port}"
    assert tune_download("o/m", "--output-dir", "m", token="hf_secret").returncode == 0
    assert files(folder / "m")["model.safetensors"] == FILES["model.safetensors"]
    assert fetched(hub) == [] and len(fetched(storage)) == 3
    assert {token for *_, token in storage.seen} == {None} and {token for *_, token in hub.seen} == {"Bearer hf_secret"}
    storage.shutdown()
    storage.server_close()


def test_files_that_are_not_the_hubs_are_fetched_again(tune_download, hub, folder):
    tune_download("o/m", "--output-dir", "m")
    (folder / "m/model.safetensors").write_bytes(b"cut")
    (folder / "m/tokenizer.model").write_bytes(b"PIECES")
    hub.seen.clear()
    assert tune_download("o/m", "--output-dir", "m").returncode == 0
    assert fetched(hub) == ["model.safetensors", "tokenizer.model"]
    assert files(folder / "m") == {
        name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.model")
    }


@pytest.mark.parametrize("name", ["tokenizer.model", "model.safetensors"])
def test_what_comes_is_compared_with_what_the_hub_lists(name, tune_download, hub, folder):
    hub.claimed[name] = FILES[name][:-1] + b"!"
    done = tune_download("o/m", "--output-dir", "m")
    assert done.returncode == 4 and f"m/{name}: the download ({len(FILES[name]):,} bytes) is not" in done.stderr
    assert not list((folder / "m").glob(f"{name}*"))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["o/none"], 4, "there is no model o/none, or it is private and HF_TOKEN may not read it"),
        (["o/gated"], 4, "o/gated is gated: accept its terms on its page, and set HF_TOKEN"),
        (["o/m", "--hf-token", "hf_secret"], 2, "a token on the command line is seen by every user"),
        (["m"], 2, "'m' is not a repository; expected OWNER/NAME"),
        (["o/m", "--include", "*.gguf"], 2, "no file of o/m matches --include and --ignore (it has: config.json, "),
        (["o/m", "--output-dir", "file/x"], 2, "--output-dir file/x: file is a file"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(words, status, message, tune_download, folder):
    (folder / "file").write_text("")
    done = tune_download(*words)
    assert (done.returncode, done.stdout) == (status, "") and done.stderr.startswith(f"tune: error: {message}")
    assert done.stderr.count("\n") == 1 and "hf_secret" not in done.stderr


def test_a_name_that_leads_out_of_the_folder_is_refused(tune_download, hub, folder):
    hub.files["../../.bashrc"] = b"evil"
    done = tune_download("o/m", "--output-dir", "m")
    assert done.returncode == 4 and "'../../.bashrc', which would lie outside the folder" in done.stderr
    assert fetched(hub) == [] and not (folder / "m").exists()


@pytest.mark.parametrize(
    ("include", "ignore", "chosen"),
    [
        (None, [], ["a.safetensors", "c.json"]),
        (None, ["*.json"], ["a.safetensors"]),
        (["*"], [], ["a.safetensors", "b.bin", "c.json"]),
        (["*.bin", "c*"], ["c.*"], ["b.bin"]),
    ],
)
def test_patterns(include, ignore, chosen):
    assert download.choose("o/m", ["c.json", "b.bin", "a.safetensors"], include, ignore) == chosen


def test_without_safetensors_the_other_formats_are_taken():
    assert download.choose("o/m", ["b.bin", "c.json"], None, []) == ["b.bin", "c.json"]


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "..\\b"])
def test_unsafe_names(name):
    with pytest.raises(CheckpointError, match="would lie outside the folder"):
        download.choose("o/m", [name, "ok"], ["ok"], [])


def test_a_full_disk_is_found_before_the_download(folder):
    download.check_space(Path("new/folder"), 3)
    with pytest.raises(ConfigError, match="the download needs 1048576.0"):
        download.check_space(folder, 2**50)


def test_the_library_is_named_when_it_is_missing(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'torchtune_lite\[hf\]'"):
        tune("download", "o/m")
