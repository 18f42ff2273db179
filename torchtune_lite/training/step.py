"""What holds for every optimizer step."""

import math
from typing import SupportsFloat

from torchtune_lite.errors import NonFiniteError


def check_finite(step: int, **values: SupportsFloat) -> None:
    """Raises NonFiniteError when a value of `step` is nan or infinite, before the optimizer spreads it."""
    wrong = [f"{name} is {float(value)}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise NonFiniteError(
            f"step {step}: {' and '.join(wrong)}; the weights and the last checkpoint are as before it. "
            "Lower optimizer.lr, set clip_grad_norm, or look at the data of this step"
        )
