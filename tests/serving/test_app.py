import asyncio
import json

import pytest

from torchtune_lite.serving.app import Service, make_app
from torchtune_lite.serving.worker import Worker


@pytest.fixture
def service(engine, reader):
    service = Service("m", reader, Worker(engine))
    yield service
    service.worker.stop()


def call(service, path, body, *, leaves=False, hosts=None):
    """Sends a request by ASGI; gives the status and the body. `leaves`: the client has gone when it is sent."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json; charset=utf-8"), (b"host", b"localhost:8000")],
    }
    sent = []

    async def run():
        news = asyncio.Queue()
        news.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        if leaves:
            news.put_nowait({"type": "http.disconnect"})

        async def send(message):
            sent.append(message)

        await asyncio.wait_for(make_app(service, hosts)(scope, news.get, send), timeout=60)

    asyncio.run(run())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def test_a_stream_is_events_with_done_at_the_end(service):
    service.worker.start()
    body = {"prompt": [1, 300], "max_tokens": 3, "stream": True, "temperature": 0}
    status, text = call(service, "/v1/completions", body)
    *events, done, nothing = text.split("\n\n")
    assert (status, done, nothing) == (200, "data: [DONE]", "") and len(events) == 3
    whole = json.loads(call(service, "/v1/completions", body | {"stream": False})[1])
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole["choices"][0]["text"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_gone_is_not_answered(stream, service, engine):
    service.worker.start()
    call(service, "/v1/completions", {"prompt": [1, 300], "max_tokens": 200, "stream": stream}, leaves=True)
    service.worker.stop()
    service.worker.join(60)
    assert not any(slot.request for slot in engine._slots)


def test_a_server_that_stops_says_so(service):
    service.worker.stop()
    service.worker.start()
    status, text = call(service, "/v1/completions", {"prompt": [1, 300]})
    error = json.loads(text)["error"]
    assert (status, error["type"], error["message"]) == (503, "server_error", "the server is stopping")
    status, text = call(service, "/v1/completions", {"prompt": [1, 300], "stream": True})
    event, done = text.rstrip().split("\n\n")
    assert (status, json.loads(event.removeprefix("data: ")), done) == (200, {"error": error}, "data: [DONE]")


def test_it_answers_to_the_names_it_is_given(service):
    assert call(service, "/v1/completions", {"prompt": []}, hosts=["other"])[0] == 400
    status, text = call(service, "/v1/completions", {"prompt": []}, hosts=["localhost"])
    assert status == 400 and "prompt is missing" in text
