"""What all methods share in PEFT's files."""

import pytest
from peft.utils.other import get_pattern_key

from torchtune_lite.peft.peft_file import of_module

KEYS = (
    *(
        "q_proj",
        "proj",
        "self_attn.q_proj",
        "attn.q_proj",
        "layers.1.self_attn.k_proj",
        r"layers\.[01]\.self_attn.q_.*",
    ),
    *("^model.layers.0.self_attn.q_proj", "^q_proj", "^layers.0", "model.layers.1.self_attn.q_proj", "k_proj|q_proj"),
    *("lm_head", "^lm_head", ".*", "q_proj$", ""),
)


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_names_the_modules_that_it_names_in_peft(key):
    paths = [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1, 11) for p in "qk"] + ["lm_head"]
    for pattern in ({key: 7}, {key: 7, "q_proj": 5}, {"k_proj": 6, key: 7}):
        for path in paths:
            assert of_module(pattern, path, 4) == pattern.get(get_pattern_key(pattern.keys(), path), 4), (
                path,
                pattern,
            )
