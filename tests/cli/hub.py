"""A Hugging Face hub of one repository, o/m, in this process: the few addresses that downloads need."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 48_000,
    "pytorch_model.bin": b"the same again",
    "original/consolidated.00.pth": b"and again",
    "tokenizer.model": b"pieces",
}


class Hub(BaseHTTPRequestHandler):
    """Serves `server.files` as the repository o/m; notes each request; breaks off after `server.breaks_after` bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, range_header = self.server, self.headers.get("Range")
        server.seen.append((self.command, self.path, range_header, self.headers.get("Authorization")))
        found = re.match(rf"/o/m/resolve/{server.sha}/([^?]+)", self.path)
        if self.path.startswith(f"/api/models/o/m/revision/{server.sha[:1]}") or "/o/m/revision/main" in self.path:
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(self.described()).encode())
        elif server.down:
            self.answer(403, {}, b"down")
        elif found:
            body = server.files[found[1]]
            if server.storage:
                linked = {"X-Linked-ETag": f'"{hashlib.md5(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
                self.answer(302, linked | {"Location": server.storage + self.path, "X-Repo-Commit": server.sha}, b"")
                return
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": server.sha, "Accept-Ranges": "bytes"}
            first = int(re.match(r"bytes=(\d+)", range_header)[1]) if range_header and self.command == "GET" else 0
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.answer(206 if first else 200, headers, body[first:])
        else:
            code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
            self.answer(403 if code == "GatedRepo" else 404, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def described(self):
        siblings = [self.listed(name, data) for name, data in self.server.files.items()]
        return {"_id": "1", "id": "o/m", "modelId": "o/m", "sha": self.server.sha, "siblings": siblings}

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
        """Keeps quiet."""


def serving(handler=Hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.files, server.claimed, server.seen, server.sha = dict(FILES), {}, [], SHA
    server.down, server.breaks_after, server.storage = False, None, None
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()  # seconds until it stops
    return server


def environment(server, home, token=None):
    """Gives the variables with which a process talks to this hub, with no token unless one is given."""
    hidden = ("HF_", "HUGGING", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    return env | ({"HF_TOKEN": token} if token else {})
