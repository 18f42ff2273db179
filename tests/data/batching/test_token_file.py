import os
import pickle
import tempfile

import pytest

from torchtune_lite.data.batching.token_file import TokenFile
from torchtune_lite.errors import DataError


def sample(first, count):
    tokens = list(range(first, first + count))
    return {"tokens": tokens, "labels": [*tokens[1:], -100]}


def test_gives_any_part_of_each_sample():
    file = TokenFile()
    samples = {7: sample(0, 100), 2: sample(2**31 - 90, 90)}
    for number, each in samples.items():
        file.add(number, each)
    for number, each in samples.items():
        for start, stop in ((0, 5), (3, 3), (80, 200)):
            assert file.part(number, start, stop) == {name: each[name][start:stop] for name in each}
    assert (7 in file, 3 in file, file.size) == (True, False, 190 * 8)


def test_reads_what_is_asked_for_and_nothing_else(monkeypatch):
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: read.append(count) or pread(file, count, at))
    file = TokenFile()
    for number, count in enumerate((100, 10_000)):
        file.add(number, sample(0, count))
        file.part(number, 50, 60)
    assert read == [10 * 4] * 4


def test_children_read_beside_their_parent():
    file = TokenFile()
    file.add(0, sample(5, 1000))
    if not (child := os.fork()):
        os._exit(any(file.part(0, at, at + 9) != file.part(0, at, at + 9) for at in range(900)))
    assert all(file.part(0, at, at + 2)["tokens"] == [5 + at, 6 + at] for at in range(900))
    assert os.waitpid(child, 0)[1] == 0


def test_a_copy_for_another_process_is_empty():
    file = TokenFile()
    file.add(0, sample(5, 10))
    copy = pickle.loads(pickle.dumps(file))
    assert 0 in file and 0 not in copy and copy.size == 0


def test_no_room_for_it_is_one_line(monkeypatch):
    def refuse(**rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(DataError, match="cannot be kept in .* .No space left on device.; TMPDIR names another folder"):
        TokenFile().add(0, sample(5, 10))
