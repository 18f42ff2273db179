"""`tune download` from a hub in this process: the few addresses of the Hugging Face hub that it needs."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from torchtune_lite.cli import download
from torchtune_lite.errors import CheckpointError, ConfigError

pytest.importorskip("huggingface_hub")

SHA = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 48_000,
    "pytorch_model.bin": b"the same again",
    "original/consolidated.00.pth": b"and again",
    "tokenizer.model": b"pieces",
}


class Hub(BaseHTTPRequestHandler):
    """A hub with `server.files` as o/m that notes each request and breaks off after `server.breaks_after` bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, range_header = self.server, self.headers.get("Range")
        server.seen.append((self.command, self.path, range_header, self.headers.get("Authorization")))
        found = re.match(rf"/o/m/resolve/{SHA}/([^?]+)", self.path)
        if self.path.startswith(f"/api/models/o/m/revision/{SHA[:1]}") or "/o/m/revision/main" in self.path:
            siblings = [self.listed(name, data) for name, data in server.files.items()]
            body = json.dumps({"_id": "1", "id": "o/m", "modelId": "o/m", "sha": SHA, "siblings": siblings}).encode()
            self.answer(200, {"Content-Type": "application/json"}, body)
        elif server.down:
            self.answer(403, {}, b"down")
        elif found:
            body = server.files[found[1]]
            if server.storage:
                linked = {"X-Linked-ETag": f'"{hashlib.md5(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
                self.answer(302, linked | {"Location": server.storage + self.path, "X-Repo-Commit": SHA}, b"")
                return
            headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            first = int(re.match(r"bytes=(\d+)", range_header)[1]) if range_header and self.command == "GET" else 0
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.answer(206 if first else 200, headers, body[first:])
        else:
            code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
            self.answer(403 if code == "GatedRepo" else 404, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def listed(self, name, data):
        data = self.server.claimed.get(name, data)
        file = {
            "rfilename": name,
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return file | ({"lfs": lfs} if len(data) > 10_000 else {})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.server.breaks_after if len(body) > 10_000 else None
            self.wfile.write(body[:cut])
            if cut is not None:
                self.server.down = self.close_connection = True

    def log_message(self, *args):
        """Keep quiet."""


def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.claimed, server.seen = dict(FILES), {}, []
    server.down, server.breaks_after, server.storage = False, None, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub():
    server = serving()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def tune_download(hub, folder):
    """Run the command against the hub in a process of its own, with no token unless one is given."""

    def run(*words, token=None):
        hidden = ("HF_", "HUGGING", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
        env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder / "home")}
        env |= {"HF_TOKEN": token} if token else {}
        command = [sys.executable, "-m", "torchtune_lite", "download", *words]
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
