"""`tune serve` in a process of its own, as people call it: OpenAI's client, plain HTTP, clients that leave, Ctrl-C."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
import transformers

from tests.demo_run import make_run
from torchtune_lite.serving import parameters

QUESTION = [{"role": "user", "content": "12 Hill Road, 埔里鎮"}]
LONG = {"messages": QUESTION, "max_tokens": 200, "temperature": 1.5, "seed": 1}


class Served:
    """A server on a run, at a port that is free; `log` has what it says."""

    def __init__(self, folder, *words):
        command = [sys.executable, "-u", "-m", "torchtune_lite", "serve", str(folder), "port=0", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        self.log: list[str] = []
        self._lines = threading.Thread(target=self._read, daemon=True)
        self._lines.start()
        self.port = int(self.wait_for(r"serving '.*' at http://127\.0\.0\.1:(\d+)/v1")[1])

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def wait_for(self, pattern, seconds=60):
        """Gives the first match of a line that comes, or has come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := next(filter(None, (re.search(pattern, line) for line in self.log)), None):
                return found
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        raise AssertionError(f"{pattern} is not in {self.log}")

    def client(self):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=60)

    def call(self, method, path, body=None, **headers):
        """Sends plain HTTP; gives status and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "addresses"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def served(run):
    served = Served(run)
    yield served
    served.process.kill()
    served.process.wait()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


@pytest.fixture(scope="module")
def theirs(run):
    """The checkpoint in transformers, and its tokenizer."""
    folder = run / "epoch_0"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_an_answer_is_that_of_transformers_with_its_log_probabilities(client, theirs):
    model, tokenizer = theirs
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=20, do_sample=False)
        expected = model(whole).logits.log_softmax(-1)[0, ids.shape[1] - 1 : -1]
    new = whole[0, ids.shape[1] :]
    asked = {"messages": QUESTION, "max_completion_tokens": 20, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(model="addresses", **asked)
    [choice] = answer.choices
    assert choice.message.content == tokenizer.decode(new, skip_special_tokens=True)
    tokens = choice.logprobs.content
    assert [token.logprob for token in tokens] == pytest.approx(
        expected.gather(1, new[:, None])[: len(tokens), 0].tolist(), abs=1e-4
    )
    best = expected.topk(2).values[: len(tokens)].tolist()
    assert [[top.logprob for top in token.top_logprobs] for token in tokens] == [
        pytest.approx(b, abs=1e-4) for b in best
    ]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (ids.shape[1], len(tokens))
    assert usage.total_tokens == ids.shape[1] + len(tokens)


def test_a_stream_is_the_answer_in_pieces(client):
    """Drawn hot, the text has characters of several tokens, whole and broken."""
    whole = client.chat.completions.create(model="addresses", n=4, **LONG)
    texts, ends, usage = [""] * 4, [None] * 4, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model="addresses", n=4, stream=True, stream_options=options, **LONG):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert ends[choice.index] is None
            texts[choice.index] += choice.delta.content
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) == 4
    assert ends == [choice.finish_reason for choice in whole.choices] and usage == whole.usage
    assert any(ord(character) > 0x2E80 for text in texts for character in text)


def test_a_text_is_continued(client, theirs):
    model, tokenizer = theirs
    prompts = ["Hill Road is", "屬於"]
    answer = client.completions.create(model="addresses", prompt=prompts, max_tokens=12, temperature=0, logprobs=1)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(ids, max_new_tokens=12, do_sample=False)
        assert prompt + choice.text == tokenizer.decode(whole[0], skip_special_tokens=True)
        assert "".join(choice.logprobs.tokens) == choice.text
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset) > 3


def test_a_stop_string_ends_an_answer(client):
    asked = {"model": "addresses", "prompt": "屬於", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[3:5]
    [choice] = client.completions.create(stop=[stop, "never"], **asked).choices
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = client.completions.create(stop=stop, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_the_models_are_listed(client, served):
    [model] = client.models.list().data
    assert (model.id, client.models.retrieve("addresses").id, model.max_model_len) == ("addresses", "addresses", 256)
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4o' is not served; 'addresses' is"):
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)


def test_two_streams_come_side_by_side(client):
    """Each has begun before the other has ended."""
    names, both = [], threading.Barrier(2)

    def stream(name):
        both.wait(60)
        for _ in client.chat.completions.create(model="addresses", stream=True, n=32, **LONG | {"seed": ord(name)}):
            names.append(name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(stream, "ab"))
    firsts, lasts = [names.index(name) for name in "ab"], [len(names) - 1 - names[::-1].index(name) for name in "ab"]
    assert max(firsts) < min(lasts)


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_to_a_client_that_leaves_is_given_up(stream, served):
    """One that waits for the whole leaves later and later: not before a busy machine has read what it asks for."""
    body = json.dumps(LONG | {"n": 128, "stream": stream}).encode()
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before, given_up = len(served.log), []
    for seconds in (0.2, 0.5, 1, 2, 4):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
            if stream:
                assert b"200 OK" in connection.recv(100)
            else:
                time.sleep(seconds)
        assert served.call("GET", "/v1/models")[0] == 200
        end = time.monotonic() + (60 if stream else 1)
        while not given_up and time.monotonic() < end:
            time.sleep(0.02)
            given_up = [line for line in served.log[before:] if "not to its end" in line]
        if given_up:
            break
    assert given_up and not [line for line in served.log[before:] if "Traceback" in line or "ERROR" in line]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/chat/completions", {}, 400, "messages is missing; give the turns of a conversation"),
        ("POST", "/v1/chat/completions", b"{", 400, "the body is not JSON: "),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "the body is not JSON: "),
        ("POST", "/v1/chat/completions", b"\xff", 400, "the body is not JSON: "),
        ("POST", "/v1/completions", {"prompt": "a", "best_of": 3}, 400, "best_of is not served; leave it out"),
        (
            "POST",
            "/v1/completions",
            {"prompt": "a", "stream": True, "top_k": 0},
            400,
            "top_k is 0; it must be 1 or more",
        ),
        ("POST", "/v1/completions", b" " * (2**24 + 1), 413, "the body has more than 16 MiB"),
        ("POST", "/v1/embeddings", {"input": "a"}, 404, "POST /v1/embeddings is not served; POST /v1/chat/completions"),
        ("GET", "/v1/chat/completions", None, 405, "GET /v1/chat/completions is not served; POST /v1/chat/completions"),
        ("GET", "/v1/models/x", None, 404, "the model 'x' is not served; 'addresses' is"),
    ],
)
def test_a_bad_request_is_answered_as_openai_does(method, path, body, status, message, served):
    answered, text = served.call(method, path, body)
    error = json.loads(text)["error"]
    assert answered == status and error["message"].startswith(message) and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}


def test_the_page_on_serving_can_be_followed(served, capsys):
    """Its request by curl and its program, at this server's port, of this server's model."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    page = page.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace('"qlora"', '"addresses"')
    [(path, body)] = re.findall(r"    curl http://127.0.0.1:\d+(\S+) -H .* \\\n      -d '(.*)'\n", page)
    status, text = served.call("POST", path, body.encode())
    [program] = re.findall(r"^    import openai\n(?:    .*\n|\n)+", page, re.M)
    exec(textwrap.dedent(program))
    assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == capsys.readouterr().out
    table = set(re.findall(r"`(\w+)`", page.partition("| parameter | |")[2].partition("\n\n")[0]))
    assert table >= {*parameters.CHAT, *parameters.COMPLETION} - {"model", "messages", "prompt", "stream_options"}
    assert table - {*parameters.CHAT} - {"extra_body"} <= {*parameters.OFF}


def test_a_page_of_another_site_cannot_call_it(served):
    """A browser sends a page's text/plain without asking; and a name that leads here is still a name."""
    body = {"messages": QUESTION}
    assert served.call("POST", "/v1/chat/completions", body, **{"Content-Type": "text/plain"})[0] == 415
    assert served.call("GET", "/v1/models", Host="evil.example")[0] == 400
    assert served.call("GET", "/v1/models", Host=f"localhost:{served.port}")[0] == 200


def test_ctrl_c_ends_the_server_and_the_answers_under_way(run):
    """Also where a client reads on, and another has opened a connection and is silent."""
    served = Served(run, "--name", "mine", "slots=1")
    idle = socket.create_connection(("127.0.0.1", served.port))
    stream = served.client().chat.completions.create(model="mine", stream=True, n=100, **LONG)
    next(stream)
    served.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="the server is stopping"):
        list(stream)
    assert served.process.wait(timeout=60) == 130
    served._lines.join(60)
    idle.close()
    assert served.log[-1] == "tune: stopped by SIGINT" and not any("Traceback" in line for line in served.log)
