import torch

from torchtune_lite.modules import sequence_values


def test_the_value_is_that_of_the_last_token_padded_or_in_one_row():
    lens = [3, 1, 2]
    rows = [torch.randn(n, 4) for n in lens]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    expected = torch.stack([row[-1] for row in rows])
    assert torch.equal(sequence_values(padded, lens), expected)
    assert torch.equal(sequence_values(torch.cat(rows)[None], lens), expected)
    assert torch.equal(sequence_values(rows[0][None], [3]), expected[:1])
