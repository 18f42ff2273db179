import json
import random

import numpy as np
import torch

from torchtune_lite.checkpoint.rng import rng_state, set_rng_state


def draw() -> list:
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.randn(17).tolist()]


def test_every_generator_goes_on_where_it_was():
    draw()  # leaves half a pair of Gaussians behind in each generator
    state = json.loads(json.dumps(rng_state()))
    expected = draw()
    assert draw() != expected
    set_rng_state(state)
    assert draw() == expected
