"""Int4 against the quantisation of mslk's, written out."""

import torch

from torchtune_lite.export import int4


def test_the_codes_are_those_of_each_group_from_its_least_to_its_largest():
    weight = torch.randn(5, 3 * int4.GROUP, generator=torch.Generator().manual_seed(0))
    weight[2, : int4.GROUP] = 0.25  # no range
    weight[3, 7] = 40.0
    encoded = int4.encode(weight)
    assert encoded.shape == weight.shape and encoded.block_size == [1, int4.GROUP]
    assert encoded.scale.shape == encoded.zero_point.shape == (3, 5)
    for row in range(5):
        for group in range(3):
            values = weight[row, group * int4.GROUP : (group + 1) * int4.GROUP].tolist()
            scale = max(max(values) - min(values), 1e-6) / 15
            codes = [min(max(round((value - min(values)) / scale), 0), 15) - 8 for value in values]
            packed = encoded.qdata[row, group * int4.GROUP // 2 :].tolist()
            for place, code in enumerate(codes):
                byte = packed[place // 2] & 255
                assert (byte >> 4 if place % 2 else byte & 15) == code & 15
            assert encoded.scale[group, row] == torch.tensor(scale).bfloat16()
            assert encoded.zero_point[group, row] == torch.tensor(min(values) + 8 * scale).bfloat16()
    error = (int4.decode(encoded) - weight).unflatten(1, (3, -1)).abs().amax(-1)
    assert (error < 0.52 * encoded.scale.float().t() + 0.03).all()
