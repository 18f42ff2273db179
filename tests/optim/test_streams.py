import torch

from torchtune_lite.optim.streams import CopyStream, copy_stream, host_copy

CPU = torch.device("cpu")


def test_on_a_cpu_a_stream_is_nothing_to_wait_for():
    stream = copy_stream(CPU)
    assert stream is copy_stream(torch.device("cpu")) and stream.mark() is None
    with stream.copies(of_results=True):
        copied = host_copy(torch.ones(2), torch.bfloat16)
    stream.before_computing(stream.mark())
    stream.wait(stream.mark())
    assert copied.dtype == torch.bfloat16 and copied.tolist() == [1, 1]


def test_a_copy_shares_nothing():
    values = torch.ones(2)
    host_copy(values).add_(1)
    assert values.tolist() == [1, 1]


def test_on_cuda_results_are_copied_when_computed_and_a_mark_is_waited_for(monkeypatch):
    log = []

    class Stream:
        device = torch.device("cuda", 0)

        def __init__(self, name="computing"):
            self.name = name if isinstance(name, str) else "copying"

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            log.append(f"{self.name} waits for the {event.name}")

        def record_event(self):
            return Event()

    class Event:
        name = "mark"

        def synchronize(self):
            log.append("host waits for the mark")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    stream = CopyStream(torch.device("cuda"))
    assert stream.copies().name == "copying" and log == []
    stream.copies(of_results=True)
    mark = stream.mark()
    stream.before_computing(mark)
    stream.wait(mark)
    assert log == ["copying waits for computing", "computing waits for the mark", "host waits for the mark"]
