"""A named size has the number of parameters that its models were published with; a tied matrix counts once."""

import pytest
import torch

from torchtune_lite.models import SIZES, phi
from torchtune_lite.models.builders import decoder

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "tinyllama_1_1b": 1_100_048_384,
    "code_llama2_7b": 6_738_546_688,
    "code_llama2_13b": 13_016_028_160,
    "code_llama2_34b": 33_743_970_304,
    "code_llama2_70b": 68_976_910_336,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_3_70b": 70_553_706_496,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "mistral_nemo_12b": 12_247_782_400,
    "mistral_small_24b": 23_572_403_200,
    "ministral3_3b": 3_429_006_336,
    "ministral3_8b": 8_489_553_920,
    "ministral3_14b": 13_506_073_600,
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b_base": 1_543_714_304,
    "qwen2_5_1_5b_instruct": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b_base": 7_615_616_512,
    "qwen2_5_7b_instruct": 7_615_616_512,
    "qwen2_5_14b_base": 14_770_033_664,
    "qwen2_5_14b_instruct": 14_770_033_664,
    "qwen2_5_32b_base": 32_763_876_352,
    "qwen2_5_32b_instruct": 32_763_876_352,
    "qwen2_5_72b_base": 72_706_203_648,
    "qwen2_5_72b_instruct": 72_706_203_648,
    "qwen3_0_6b_base": 596_049_920,
    "qwen3_0_6b_instruct": 596_049_920,
    "qwen3_1_7b_base": 1_720_574_976,
    "qwen3_1_7b_instruct": 1_720_574_976,
    "qwen3_4b_base": 4_022_468_096,
    "qwen3_4b_instruct": 4_022_468_096,
    "qwen3_8b_base": 8_190_735_360,
    "qwen3_8b_instruct": 8_190_735_360,
    "qwen3_14b_base": 14_768_307_200,
    "qwen3_14b_instruct": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "smollm3_3b": 3_075_098_624,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "phi3_mini": 3_821_079_552,
    "phi3_medium_14b": 13_960_238_080,
    "phi4_14b": 14_659_507_200,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "olmo3_7b": 7_298_011_136,
    "olmo3_32b": 32_233_522_176,
    "granite3_2b": 2_533_531_648,
    "granite3_8b": 8_170_848_256,
    "granite4_micro_3b": 3_402_836_480,
    "seed_oss_36b": 36_151_104_512,
}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_published_number_of_parameters(size):
    with torch.device("meta"):
        model = decoder(SIZES[size])
    assert sum(param.numel() for param in model.parameters()) == PUBLISHED[size]


def test_phi4_mini_whose_factors_come_from_the_checkpoint_has_it_too():
    with torch.device("meta"):
        model = phi.phi4_mini()
    assert sum(param.numel() for param in model.parameters()) == 3_836_021_760
