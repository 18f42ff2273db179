import torch

from torchtune_lite.optim.streams import copy_stream, host_copy

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
