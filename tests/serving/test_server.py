import http.client
import json
import sys
import threading

import pytest

from torchtune_lite.errors import ConfigError
from torchtune_lite.serving.server import listen, serve


def test_a_port_that_is_taken_is_refused():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"cannot serve at host=127.0.0.1 port={port}: Address already in use; cho"
        ):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no host", "x" * 70])
def test_an_address_that_is_not_of_this_machine_is_refused(host):
    with pytest.raises(ConfigError, match=f"cannot serve at host={host} port=0: .*; choose another"):
        listen(host, 0)


def test_a_port_has_sixteen_bits():
    with pytest.raises(ConfigError, match="port is 65536; it must be from 0 to 65535"):
        listen("127.0.0.1", 65536)


def test_the_extra_is_named_where_a_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"pip install 'torchtune_lite\[serve\]'"):
        listen("127.0.0.1", 0)


def test_an_error_of_the_engine_ends_the_server_and_is_raised(engine, monkeypatch):
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    taken, answers = listen("127.0.0.1", 0), []
    port = taken.getsockname()[1]

    def ask():
        for _ in range(1000):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                body = json.dumps({"prompt": [1, 300]})
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            except ConnectionRefusedError:  # not yet
                threading.Event().wait(0.05)
            else:
                answers.append(connection.getresponse().status)
                return

    client = threading.Thread(target=ask)
    client.start()
    with pytest.raises(ZeroDivisionError):
        serve(taken, engine, "m")
    client.join(60)
    assert answers == [503]


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_can_use_it_is_said(host, warned, engine, monkeypatch, log_lines):
    """The server stops as soon as it has started."""
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "main_loop", lambda server: _nothing())
    taken = listen(host, 0)
    serve(taken, engine, "m")
    port = log_lines[0].rpartition(":")[2].partition("/")[0]
    assert log_lines[0] == f"serving 'm' at http://{host}:{port}/v1, for trying it out; Ctrl-C stops"
    assert any("there is no password" in line for line in log_lines) is warned
    assert taken.fileno() == -1  # closed


async def _nothing():
    pass
