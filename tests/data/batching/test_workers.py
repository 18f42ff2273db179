import gzip
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.data.chats import TEMPLATES, plain, write_folder
from torchtune_lite.data import Batches, Message, load_tokenizer
from torchtune_lite.data.batching import workers
from torchtune_lite.data.batching.workers import made_ahead
from torchtune_lite.datasets import instruct_dataset
from torchtune_lite.errors import DataError


def in_which(number):
    return number, os.getpid()


def handlers(number):
    return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def fails_at_three(number):
    if number == 3:
        raise DataError("x.jsonl:4: bad")
    return number


def dies_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_the_order_is_that_of_the_items_and_the_work_is_done_elsewhere():
    numbers, pids = zip(*made_ahead(in_which, [4, 2, 9, 7], 2), strict=True)
    assert numbers == (4, 2, 9, 7)
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert list(made_ahead(in_which, [4, 2], 0)) == [(4, os.getpid()), (2, os.getpid())]


def test_workers_leave_signals_to_the_training_process():
    assert list(made_ahead(handlers, [0], 1)) == [[signal.SIG_IGN] * 3]


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    list(made_ahead(in_which, range(4), 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_keeps_its_one_line_and_comes_in_its_turn():
    made = made_ahead(fails_at_three, range(6), 1)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="^x.jsonl:4: bad$"):
        next(made)


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(DataError, match=r"^DataLoader worker \(pid.*; set num_workers=0$"):
        list(made_ahead(dies_at_three, range(6), 1))


def test_workers_end_with_a_training_process_that_is_killed():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        made = made_ahead(in_which, range(100), 1)
        os.write(write, str(next(made)[1]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    worker = int(os.read(read, 20))
    for _ in range(6000):  # a minute
        try:
            with open(f"/proc/{worker}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail("the worker lives on")


def test_a_process_ends_whose_workers_are_not_done():
    code = (
        "from torchtune_lite.data.batching.workers import made_ahead; m = made_ahead(str, range(99), 2); print(next(m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.fixture
def spawning(monkeypatch):
    """Make workers start as on a Mac: as new processes that are sent their data."""
    monkeypatch.setattr(workers, "sys", SimpleNamespace(platform="darwin"))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_a_new_process_is_sent_the_data_set_with_its_gzip_file_and_chat_template(tmp_path, spawning):
    folder = write_folder(tmp_path, "bytelevel", plain(TEMPLATES["chatml"]))
    rows = [json.dumps({"input": f"the {n}", "output": "fox"}) for n in range(3)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    dataset = instruct_dataset(load_tokenizer(folder, prompt_template="chat_template"), str(tmp_path / "rows.jsonl.gz"))
    here, there = (
        [
            batch["tokens"].tolist()
            for batch in Batches(dataset, 2, seed=0, shuffle=True, pad_id=0, num_workers=n).epoch(0)
        ]
        for n in (0, 1)
    )
    assert here == there


@pytest.mark.parametrize("kind", ["bytelevel", "metaspace", "spm"])
def test_a_tokenizer_with_a_chat_template_can_be_sent(kind, tmp_path):
    tokenizer = load_tokenizer(
        write_folder(tmp_path, kind, plain(TEMPLATES["llama3"])), prompt_template="chat_template"
    )
    chat = {"messages": [Message("user", "the fox?"), Message("assistant", "jumps")]}
    assert pickle.loads(pickle.dumps(tokenizer))(chat) == tokenizer(chat)
