"""`tune upload` to a hub in this process, which takes files as the Hugging Face hub does: LFS first, then a commit."""

import base64
import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from tests.cli.hub import Hub, environment, serving
from torchtune_lite.checkpoint import publish
from torchtune_lite.checkpoint.store.claim import DRAFT
from torchtune_lite.cli.main import main
from torchtune_lite.cli.verbs.upload import explain
from torchtune_lite.errors import ConfigError

pytest.importorskip("huggingface_hub")

SECRET = "hf_secret_of_the_test"
SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 300_000 for i in (1, 2)}
MODEL = {"config.json": b"{}", "model.safetensors.index.json": b"{}", "tokenizer.json": b"[]", **SHARDS}
CONFIG = """\
recipe: lora_finetune_single_device
output_dir: /home/me/runs/x
checkpointer: {_component_: torchtune_lite.training.FullModelHFCheckpointer, checkpoint_dir: /home/me/models/base}
dataset: {_component_: torchtune_lite.datasets.instruct_dataset, source: /home/me/rows.jsonl}
"""


class Taking(Hub):
    """Takes uploads, those of `.safetensors` by LFS; answers 403 to the PUT of an object in `server.refused`."""

    def do_GET(self):  # noqa: N802
        if self.path.startswith("/api/models/o/m") and "revision" not in self.path and self.server.exists:
            self.server.seen.append((self.command, self.path, None, self.headers.get("Authorization")))
            self.answer_json(self.described() | {"private": self.server.private})
        else:
            super().do_GET()

    def do_POST(self):  # noqa: N802
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.command, self.path, None, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        if server.readonly and path.startswith("/api/"):
            self.answer(403, {}, b"")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            server.exists, server.private = True, "private" in (asked.get("visibility"), *asked)
            self.answer_json({"url": f"http://127.0.0.1/{asked['organization']}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            server.metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self.answer_json({"warnings": [], "errors": []})
        elif path == "/api/models/o/m/preupload/main":
            self.answer_json({"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path == "/o/m.git/info/lfs/objects/batch":
            self.answer_json(
                {"transfer": "basic", "objects": [self.action(each) for each in json.loads(body)["objects"]]}
            )
        elif path == "/api/models/o/m/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {}, b"")

    def do_PUT(self):  # noqa: N802
        oid, body = self.path.rpartition("/")[2], self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.command, self.path, None, self.headers.get("Authorization")))
        if body in self.server.refused:
            self.answer(400, {}, b"")
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(200, {}, b"")

    def mode(self, name):
        there, is_lfs = self.server.files.get(name), name.endswith(".safetensors")
        oid = there and (hashlib.sha256(there).hexdigest() if is_lfs else self.listed(name, there)["blobId"])
        return {"path": name, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}

    def action(self, asked):
        href = f"http://127.0.0.1:{self.server.server_port}/storage/{asked['oid']}"
        upload = {} if asked["oid"] in self.server.objects else {"actions": {"upload": {"href": href}}}
        return asked | upload

    def commit(self, lines):
        server = self.server
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                server.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                server.files[value["path"]] = server.objects[value["oid"]]
            elif key == "deletedFile":
                del server.files[value["path"]]
        server.commits.append(lines[0]["value"]["summary"])
        server.sha = hashlib.sha1(str(server.commits).encode()).hexdigest()
        self.answer_json({"commitUrl": f"http://127.0.0.1/o/m/commit/{server.sha}", "commitOid": server.sha})

    def answer_json(self, content):
        self.send_response(200)
        body = json.dumps(content).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub():
    server = serving(Taking)
    server.files, server.objects, server.commits, server.refused = {}, {}, [], []
    server.exists, server.private, server.readonly = False, None, False
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(folder):
    """Makes the files of a run with a checkpoint, and gives its path."""
    with publish(folder / "runs/x/epoch_0", step=9) as draft:
        for name, content in {**MODEL, "resume/trainer.json": b"{}", "adapter/adapter_model.safetensors": b"a"}.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)
        config = {"base_model_name_or_path": "/home/me/models/base", "r": 4}
        (draft / "adapter/adapter_config.json").write_text(json.dumps(config))
    (folder / "runs/x/config.yaml").write_text(CONFIG)
    return "runs/x"


@pytest.fixture
def tune_upload(hub, monkeypatch, capsys):
    """Runs the command against the hub, by LFS: the hub has no Xet storage."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which other tests may have set

    def call(*words, token=SECRET):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(sys, "argv", ["tune", "upload", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


def test_a_run_becomes_a_private_repository_in_one_commit(hub, run, folder):
    env = environment(hub, folder / "home", SECRET) | {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "torchtune_lite", "upload", run, "o/m", "--base", "org/base"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: hub.files[name] for name in MODEL} == MODEL and set(hub.files) == {*MODEL, "README.md"}
    assert hub.private is True and len(hub.commits) == 1
    assert hub.metadata["base_model"] == "org/base" and "/home" not in hub.files["README.md"].decode()
    assert f"/o/m has runs/x/epoch_0 (6 files, 0.6 MB; {hub.sha[:12]})\n" in done.stdout
    assert {token for command, path, _, token in hub.seen if "/storage/" not in path} == {f"Bearer {SECRET}"}
    assert {token for command, path, _, token in hub.seen if "/storage/" in path} == {None}
    assert not any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_is_there_is_not_sent_again(tune_upload, hub, run):
    tune_upload(run, "o/m", "--base", "org/base")
    hub.seen.clear()
    again = tune_upload(run, "o/m", "--base", "org/base")
    assert again.returncode == 0 and "o/m has all of it already: 6 files" in again.out
    assert [path for command, path, *_ in hub.seen if command == "PUT"] == [] and len(hub.commits) == 1


def test_an_upload_that_broke_off_goes_on_where_it_stopped(tune_upload, hub, run):
    first, second = SHARDS.values()
    hub.refused = [second]
    broken = tune_upload(run, "o/m", "--base", "org/base")
    assert broken.returncode == 4 and broken.err.splitlines()[-1] == (
        "tune: error: cannot upload to o/m: Error while uploading 'model-00002-of-00002.safetensors' to the Hub: Bad "
        "request; run the same command again to go on where it stopped"
    )
    assert hub.files == {} and list(hub.objects.values()) == [first]
    hub.refused, hub.seen[:] = [], []
    assert tune_upload(run, "o/m", "--base", "org/base").returncode == 0
    assert {name: hub.files[name] for name in MODEL} == MODEL
    assert len([path for command, path, *_ in hub.seen if command == "PUT"]) == 1


def test_an_adapter_names_its_base_by_a_repository(tune_upload, hub, run):
    refused = tune_upload(run, "o/m", "--adapter")
    assert refused.returncode == 2 and "add --base OWNER/NAME" in refused.err and not hub.seen
    assert tune_upload(run, "o/m", "--adapter", "--base", "org/base").returncode == 0
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"}
    assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": "org/base", "r": 4}
    assert hub.metadata["library_name"] == "peft"


def test_weights_of_an_earlier_upload_go_and_its_card_stays(tune_upload, hub, run):
    hub.exists, hub.private = True, True
    hub.files = {"README.md": b"my own words", "model.safetensors": b"old", "notes.txt": b"mine"}
    done = tune_upload(run, "o/m")
    assert done.returncode == 0 and set(hub.files) == {*MODEL, "README.md", "notes.txt"}
    assert hub.files["README.md"] == b"my own words"
    assert "o/m has a README.md, which stays" in done.out
    assert "removed, as weights of an earlier upload: model.safetensors\n" in done.out
    assert tune_upload(run, "o/m", "--overwrite-card").returncode == 0 and hub.files["README.md"].startswith(b"---\n")


def test_a_dry_run_needs_neither_token_nor_hub(tune_upload, hub, run):
    done = tune_upload(run, "o/m", "--dry-run", token=None)
    assert done.returncode == 0 and not hub.seen
    assert "would send to o/m, private, of runs/x/epoch_0:\n" in done.out
    assert all(f"{len(content):,}  {name}\n" in done.out for name, content in MODEL.items())
    assert "resume" not in done.out and "\nlibrary_name: transformers\n" in done.out


def damaged(folder):
    (folder / "runs/x/epoch_0/model-00001-of-00002.safetensors").write_bytes(bytes([3]) * 300_000)


def half_written(folder):
    (folder / "runs/x/epoch_0").rename(folder / f"runs/x/{DRAFT}epoch_0-7")


def unverifiable(folder):
    (folder / "runs/x/epoch_0/MANIFEST.json").unlink()


@pytest.mark.parametrize(
    ("change", "words", "status", "message"),
    [
        (damaged, ["runs/x", "o/m"], 4, "runs/x/epoch_0 is damaged: model-00001-of-00002.safetensors was changed: "),
        (half_written, [f"runs/x/{DRAFT}epoch_0-7", "o/m"], 4, f"runs/x/{DRAFT}epoch_0-7 is not a whole checkpoint"),
        (half_written, ["runs/x", "o/m"], 4, "runs/x is the output_dir of a run that has saved no che"),
        (unverifiable, ["runs/x/epoch_0", "o/m"], 4, "runs/x/epoch_0 has no MANIFEST.json to verify it by"),
        (None, ["runs/y", "o/m"], 4, "runs/y is not a folder; expected a run's output_dir, a che"),
        (None, ["runs/x", "m"], 2, "'m' is not a repository; expected OWNER/NAME"),
        (None, ["runs/x", "o/m", "--base", "/home/me/base"], 2, "'/home/me/base' is not a repository"),
    ],
)
def test_what_is_not_sent_is_one_line(change, words, status, message, tune_upload, hub, run, folder):
    if change:
        change(folder)
    done = tune_upload(*words)
    assert (done.returncode, done.out) == (status, "") and done.err.startswith(f"tune: error: {message}")
    assert done.err.count("\n") == 1 and not hub.seen


def test_a_token_is_needed_that_may_write(tune_upload, hub, run):
    none = tune_upload(run, "o/m", "--base", "org/base", token=None)
    assert none.returncode == 2 and "set HF_TOKEN in the environment" in none.err and not hub.seen
    hub.readonly = True
    done = tune_upload(run, "o/m", "--base", "org/base")
    assert (done.returncode, done.out) == (4, "") and SECRET not in done.err
    assert done.err.startswith("tune: error: HF_TOKEN may not write to o/m") and done.err.count("\n") == 1


def test_a_repository_that_everybody_sees_is_meant_or_refused(tune_upload, hub, run):
    hub.exists, hub.private = True, False
    refused = tune_upload(run, "o/m", "--base", "org/base")
    assert refused.returncode == 2 and "o/m exists and is public; add --public" in refused.err and hub.files == {}
    assert tune_upload(run, "o/m", "--base", "org/base", "--public").returncode == 0 and set(hub.files) > set(MODEL)


def test_an_error_tells_no_signed_address():
    error = OSError(
        "503 Server Error for url: https://storage/x?X-Amz-Signature=abc&y=1 (Request ID: 7)\n\nReason:\nbusy"
    )
    assert explain("o/m", error) == (
        "cannot upload to o/m: 503 Server Error for url: https://storage/x (Request ID: 7): Reason: busy; run the same "
        "command again to go on where it stopped"
    )


def test_the_library_is_named_when_it_is_missing(tune, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'torchtune_lite\[hf\]'"):
        tune("upload", run, "o/m", "--base", "org/base")
