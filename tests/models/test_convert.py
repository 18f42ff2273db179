"""Names and the order of rows between checkpoint layouts."""

import pytest
import torch
from torch.testing import assert_close
from torchtune_lite.models.convert import permute_from_meta, permute_to_meta, rename

from torchtune_lite.modules import RotaryPositionalEmbeddings
from torchtune_lite.modules.rope import rotate

HEADS, WIDTH, IN, SEQUENCE = 4, 8, 16, 6


def test_permuting_there_and_back_changes_nothing():
    weight = torch.randn(HEADS * WIDTH, IN)
    assert torch.equal(permute_to_meta(permute_from_meta(weight, HEADS), HEADS), weight)
    assert torch.equal(permute_from_meta(permute_to_meta(weight, HEADS), HEADS), weight)
    assert not torch.equal(permute_from_meta(weight, HEADS), permute_to_meta(weight, HEADS))


def test_rows_keep_to_their_head_and_pairs_become_halves():
    rows = torch.arange(16)[:, None]
    assert permute_from_meta(rows, 2).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def test_permuted_weights_score_as_metas_do_with_complex_rotation():
    """Meta turns neighbouring pairs, as complex numbers; the scores of queries against keys must not change."""
    torch.manual_seed(0)
    x = torch.randn(SEQUENCE, IN)
    wq, wk = torch.randn(HEADS * WIDTH, IN), torch.randn(HEADS * WIDTH, IN)

    def meta(weight):
        pairs = torch.view_as_complex((x @ weight.T).view(SEQUENCE, HEADS, WIDTH // 2, 2))
        angles = torch.arange(SEQUENCE)[:, None] * 10_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(2).transpose(0, 1)  # [h, s, e]

    def ours(weight):
        heads = (x @ permute_from_meta(weight, HEADS).T).view(1, SEQUENCE, HEADS, WIDTH).transpose(1, 2)
        rope = RotaryPositionalEmbeddings(WIDTH, 10_000.0)(torch.arange(SEQUENCE)[None], torch.float32)
        return rotate(heads, rope)[0]

    assert_close(ours(wq) @ ours(wk).mT, meta(wq) @ meta(wk).mT, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "renamed"),
    [("a.weight", "b.weight"), ("layers.12.x", "blocks.12.y"), ("layers.3.z", None), ("layers.x", None)],
)
def test_a_name_keeps_the_number_of_its_layer(name, renamed):
    assert rename({"a.weight": "b.weight", "layers.{}.x": "blocks.{}.y"}, name) == renamed
