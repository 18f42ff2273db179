import gzip
import json
from itertools import islice

import pytest

from torchtune_lite.data import Batches, StreamBatches, make_batches, open_stream, steps_per_epoch
from torchtune_lite.data.batching import streams
from torchtune_lite.data.batching.streams import HubStream, StreamDataset
from torchtune_lite.errors import ConfigError, DataError


class Part:
    """The rows of a part as samples of one token, the row's number."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"tokens": [self.rows[i]["n"], 0], "labels": [0, -100]}

    def where(self, i):
        return self.rows.where(i)


@pytest.fixture
def files(tmp_path):
    """Four files of 5 rows, numbered from 0 to 19."""
    for number in range(4):
        rows = [json.dumps({"n": 5 * number + i}) for i in range(5)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "*.jsonl")


def stream(files, shuffle=True, seed=0, **options):
    dataset = StreamDataset(open_stream("json", data_files=files), Part)
    return StreamBatches(dataset, 2, seed=seed, shuffle=shuffle, pad_id=0, **options)


def numbers(batches, count=None):
    return [batch["tokens"][0, ::2].tolist() for batch in islice(batches.epoch(0), count)]


def test_goes_from_file_to_file_and_begins_anew(files):
    found = numbers(stream(files, shuffle=False), 14)
    assert found[:4] == [[0, 1], [2, 3], [4], [5, 6]]
    assert sum(found[:12], []) == list(range(20)) and found[12:] == found[:2]


def test_a_turn_has_each_row_once_in_an_order_that_seed_and_turn_decide(files):
    turns = [sum(numbers(stream(files), 24)[first : first + 12], []) for first in (0, 12)]
    assert sorted(turns[0]) == sorted(turns[1]) == list(range(20))
    assert turns[0] != turns[1] and turns[0] != list(range(20))
    assert [row // 5 for row in turns[0]] != sorted(row // 5 for row in turns[0]), "the files are shuffled too"
    assert turns[0] == sum(numbers(stream(files), 12), []) != sum(numbers(stream(files, seed=1), 12), [])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_goes_on_after_the_batch_that_the_cursor_names(files, num_workers):
    whole = numbers(stream(files), 20)
    for done in (1, 2, 3, 7, 12, 13) if num_workers == 0 else (4,):
        first = stream(files, num_workers=num_workers)
        assert numbers(first, done) == whole[:done]
        again = stream(files)
        again.cursor = json.loads(json.dumps(first.cursor))
        assert numbers(again, 20 - done) == whole[done:]


def test_opens_no_file_but_the_one_it_reads(files, monkeypatch):
    opened = []
    read_files = streams.read_files
    monkeypatch.setattr(streams, "read_files", lambda paths, *rest: opened.extend(paths) or read_files(paths, *rest))
    first = stream(files, shuffle=False)
    numbers(first, 8)
    assert [path.name for path in opened] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    again = stream(files, shuffle=False)
    again.cursor = first.cursor
    numbers(again, 1)
    assert [path.name for path in opened[3:]] == ["2.jsonl"]


def test_says_where_the_last_rows_stand(files):
    batches = stream(files, shuffle=False)
    numbers(batches, 5)
    folder = files.removesuffix("*.jsonl")
    assert batches.where(0, 0, 1) == f"{folder}1.jsonl:3, {folder}1.jsonl:4"
    assert batches.where(0, 0, 4).startswith(f"{folder}1.jsonl:1, ")  # of the file that is read


def test_the_fingerprint_is_that_of_the_first_samples_and_of_all_files(files, tmp_path):
    before = stream(files).fingerprint()
    assert before["samples"].startswith("a stream that begins with 5 samples with hash ")
    assert before == stream(files, seed=1, num_workers=1).fingerprint()
    last = tmp_path / "3.jsonl"
    rows = last.read_text()
    last.write_text(rows.replace("19", "18"))
    assert stream(files).fingerprint()["samples"] == before["samples"]
    assert stream(files).fingerprint()["rows"] != before["rows"]
    last.write_text(rows)
    (tmp_path / "0.jsonl").write_text('{"n": 7}')
    after = stream(files).fingerprint()
    assert after["samples"] != before["samples"] and after["rows"] != before["rows"]


def test_a_stream_is_known_by_what_is_in_its_files_however_packed(files, tmp_path):
    found = []
    for level in (1, 9):
        for path in tmp_path.glob("*.jsonl"):
            (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), level, mtime=level))
        found.append(stream(f"{tmp_path}/*.gz").fingerprint()["rows"][0][1])
    assert found[0] == found[1] == stream(files).fingerprint()["rows"][0][1]
    (tmp_path / "2.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="2.jsonl.gz is not a complete gzip file"):
        stream(f"{tmp_path}/*.gz").fingerprint()


def test_of_a_large_stream_only_the_start_of_each_file_is_looked_at(files, tmp_path, monkeypatch, log_lines):
    monkeypatch.setattr(streams, "HASHED_WHOLE", 100)
    (tmp_path / "3.jsonl").write_text(json.dumps({"n": 1, "text": "x" * 2**17}))
    before = stream(files).fingerprint()["rows"]
    assert "3 more files: more than 0 GiB, of which the start of each file is compared" in log_lines[-1]
    (tmp_path / "3.jsonl").write_text(json.dumps({"n": 1, "text": "x" * (2**17 - 1) + "y"}))
    assert stream(files).fingerprint()["rows"] == before
    for changed in ({"n": 2, "text": "x" * 2**17}, {"n": 1, "text": "x" * (2**17 + 1)}):
        (tmp_path / "3.jsonl").write_text(json.dumps(changed))
        assert stream(files).fingerprint()["rows"] != before


def test_a_part_of_a_split_is_no_stream(files):
    with pytest.raises(DataError, match=r"^split='train\[:10%\]': a stream is read whole; set split=train"):
        open_stream("json", data_files=files, split="train[:10%]")


def test_a_data_set_of_the_hub_is_read_some_rows_at_a_time(monkeypatch, log_lines):
    """With an iterable that has the interface of `datasets`; `benchmarks` and users have the real one."""
    monkeypatch.setattr(streams, "PART", 4)

    class Iterable:
        at = 0

        def __iter__(self):
            while self.at < 10:
                self.at += 1
                yield {"n": self.at - 1}

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

    def batches():
        return StreamBatches(StreamDataset(HubStream("org/name", Iterable), Part), 2, seed=0, shuffle=True, pad_id=0)

    whole = numbers(batches(), 10)
    assert [sorted(sum(whole[a:b], [])) for a, b in ((0, 2), (2, 4), (4, 5))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for done in range(1, 9):
        first, again = batches(), batches()
        numbers(first, done)
        again.cursor = first.cursor
        assert numbers(again, 10 - done) == whole[done:]
    assert first.where(0, 0, 1).startswith("org/name, part ")
    assert batches().fingerprint()["rows"] == [("name", None)]
    assert "org/name: the first 4 rows of the stream are compared" in log_lines[-1]


def test_an_empty_stream_is_an_error():
    class Empty(list):
        def state_dict(self):
            return {}

    dataset = StreamDataset(HubStream("org/name", Empty), Part)
    batches = StreamBatches(dataset, 2, seed=0, shuffle=False, pad_id=0)
    with pytest.raises(DataError, match="^org/name: the stream is empty"):
        numbers(batches)
    with pytest.raises(DataError, match="^org/name: the stream is empty"):
        batches.fingerprint()


def test_makes_the_batches_that_fit_the_data_set(files):
    made = make_batches(stream(files).dataset, 2, seed=0, shuffle=False, pad_id=0)
    assert isinstance(made, StreamBatches)
    assert len(make_batches([{"tokens": [1], "labels": [1]}], 2, seed=0, shuffle=False, pad_id=0)) == 1


def test_a_look_at_the_first_rows_moves_nothing(files):
    batches = stream(files)
    before = numbers(batches, 3), batches.cursor
    assert batches.fingerprint() and batches.largest()
    assert batches.cursor == before[1] and numbers(batches, 2) == numbers(stream(files), 5)[3:]


def test_the_largest_batch_is_that_of_the_first_file(files):
    assert stream(files).largest()["tokens"].shape == (1, 4)


def test_the_first_file_is_opened_once_to_look_at(files, monkeypatch):
    batches = stream(files)
    batches.fingerprint()
    monkeypatch.setattr(streams, "read_files", None)
    assert batches.largest()["tokens"].shape == (1, 4)
    monkeypatch.undo()
    numbers(batches, 1)
    assert batches._first is None, "one part is in memory at a time"


def test_an_epoch_is_as_many_steps_as_the_data_or_as_are_allowed():
    batches = Batches([{"tokens": [1], "labels": [1]}] * 10, 3, seed=0, shuffle=False, pad_id=0)
    assert [steps_per_epoch(batches, 2, most) for most in (None, 1, 9)] == [2, 1, 2]


def test_a_stream_has_no_end():
    stream = StreamBatches(None, 3, seed=0, shuffle=False, pad_id=0)
    assert steps_per_epoch(stream, 2, 7) == 7
    with pytest.raises(ConfigError, match="set max_steps_per_epoch$"):
        steps_per_epoch(stream, 2, None)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("resumed_after", [0, 1, 4, 5])
def test_processes_share_a_stream_in_turn_across_its_parts_and_go_on_in_another_number(files, size, resumed_after):
    """A part has 3 micro-batches here, so that no number of processes but 3 ends with one."""
    whole = numbers(stream(files), 48)
    shares = [stream(files, rank=rank, processes=size) for rank in range(size)]
    before = [numbers(share, resumed_after) for share in shares]
    cursor = shares[0].cursor
    assert [batch for turn in zip(*before, strict=True) for batch in turn] == whole[: size * resumed_after]
    for other in (1, size):
        if size * resumed_after % other == 0:
            after = [stream(files, rank=rank, processes=other) for rank in range(other)]
            for share in after:
                share.cursor = cursor
            found = [batch for turn in zip(*(numbers(share, 5) for share in after), strict=True) for batch in turn]
            assert found == whole[size * resumed_after :][: 5 * other]
