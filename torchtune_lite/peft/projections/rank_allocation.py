"""The pruning of AdaLoRA (Zhang et al., arXiv 2303.10512, section 3.2 and 3.3), in the order of its authors' code.

After the optimizer's step, the importance of each parameter is averaged from its new value and the gradient of that
step; then the least important triplets of all projections are pruned to the budget, by setting their E to zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchtune_lite.errors import ConfigError
from torchtune_lite.peft.projections.adalora import PARAMS, AdaLoRA, AdaLoRALinear
from torchtune_lite.utils import counted, get_logger


def budget_at(step: int, initial: int, target: int, method: AdaLoRA) -> tuple[int, bool]:
    """Return how many triplets may be left after a step, counted from 1, and whether that step prunes."""
    end = method.total_step - method.tfinal
    if step <= method.tinit:
        return initial, False
    if step > end:
        return target, True
    left = 1 - (step - method.tinit) / (end - method.tinit)
    return int((initial - target) * left**3 + target), step % method.delta_t == 0


class RankAllocator:
    """Prunes the triplets of a model's AdaLoRA adapters as it is trained for `total_steps` optimizer steps.

    ConfigError where the schedule of `tinit` and `tfinal` would not end within them.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self.adapters = {name: each for name, each in model.named_modules() if isinstance(each, AdaLoRALinear)}
        self.method = next(iter(self.adapters.values())).method
        method = self.method
        method.total_step = total_steps
        method.tinit = total_steps // 10 if method.tinit is None else method.tinit
        method.tfinal = total_steps * 3 // 10 if method.tfinal is None else method.tfinal
        if method.tinit + method.tfinal >= total_steps:
            raise ConfigError(
                f"model.adapter: of {counted(total_steps, 'step')}, tinit {method.tinit} and tfinal {method.tfinal} "
                "leave none to prune in; lower them, or leave them out for a tenth and three tenths"
            )
        self.initial = sum(each.rank for each in self.adapters.values())
        self.target = min(method.target_r * len(self.adapters), self.initial)
        self._logged: dict[str, int] = {}

    def follow(self, optimizer: Optimizer, number: Callable[[], int]) -> None:
        """Prune after each step of an optimizer, of which `number` tells the number."""
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer: AdaLoRA needs one of torch's class, which {type(optimizer).__name__} is not")
        self._tell_of_another_schedule()
        optimizer.register_step_post_hook(lambda *_: self.step(number()))

    def _tell_of_another_schedule(self) -> None:
        """Warn where the run that goes on had another number of steps, before its ranks were final."""
        before, now = self.method.resumed_total_step, self.method.total_step
        if before not in (None, now) and not self.is_final:
            get_logger().warning(
                "the run had %s and now has %d, which changes the budget of its ranks", counted(before, "step"), now
            )

    def penalty(self) -> Tensor:
        """Return how far A and B are from orthogonal: the mean of `‖A Aᵀ − I‖` and `‖Bᵀ B − I‖`, weighted (eq. 4)."""
        factors = [rows for each in self.adapters.values() for rows in (_exact(each.lora_a), _exact(each.lora_b).t())]
        norms = [
            torch.linalg.matrix_norm(rows @ rows.t() - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
            for rows in factors
        ]
        return self.method.orth_reg_weight * sum(norms) / len(norms)

    @property
    def is_final(self) -> bool:
        """Whether the ranks stay as they are."""
        return all(each.importance is None for each in self.adapters.values())

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Prune after the optimizer's step of this number, counted from 1, while its gradients are there."""
        if self.is_final:
            for each in self.adapters.values():  # the optimizer's momentum revives them
                each.lora_e.masked_fill_(~each.mask[:, None], 0)
            return
        last = step >= self.method.total_step - self.method.tfinal
        if not last or not any(each.importance for each in self.adapters.values()):
            self._note_importance()
        budget, prunes = budget_at(step, self.initial, self.target, self.method)
        if prunes or last:
            self._prune(budget)
        if last:
            for each in self.adapters.values():
                each.importance = None

    def _note_importance(self) -> None:
        for each in self.adapters.values():
            for name in PARAMS:
                param = each.get_parameter(name)
                if param.grad is None:
                    raise ConfigError("model.adapter: AdaLoRA needs the gradients after a step; use another optimizer")
                now = (_exact(param) * param.grad).abs()
                mean, uncertainty = each.importance.get(name, (torch.zeros_like(now), torch.zeros_like(now)))
                mean = self.method.beta1 * mean + (1 - self.method.beta1) * now
                off = (now - mean).abs()
                uncertainty = self.method.beta2 * uncertainty + (1 - self.method.beta2) * off
                each.importance[name] = mean, uncertainty

    def _prune(self, budget: int) -> None:
        if budget >= self.initial:
            return
        scores = {name: _scores(each) for name, each in self.adapters.items()}
        threshold = torch.cat(list(scores.values())).kthvalue(self.initial - budget).values
        for name, each in self.adapters.items():
            each.mask = scores[name] > threshold
            each.lora_e.masked_fill_(~each.mask[:, None], 0)

    def ranks(self) -> dict[str, int]:
        """Return the number of live triplets by the names of the projections."""
        return {name: int(each.live.sum()) for name, each in self.adapters.items()}

    def log_values(self, step: int) -> dict[str, int]:
        """Return the budget, until it is final, and those ranks that have changed since the last time."""
        ranks = self.ranks()
        changed = {f"rank/{name}": rank for name, rank in ranks.items() if self._logged.get(name) != rank}
        self._logged = ranks
        budget = {} if self.is_final and not changed else {"rank_budget": self._budget(step)}
        return budget | changed

    def _budget(self, step: int) -> int:
        return budget_at(step, self.initial, self.target, self.method)[0]

    def log_end(self) -> None:
        """Log the ranks at the end of the run, or that they are not what they were to become."""
        ranks, log = self.ranks(), get_logger()
        left = f"AdaLoRA has {sum(ranks.values())} of {counted(self.initial, 'triplet')} left"
        if not self.is_final:
            log.warning("%s, not %d: the run ended before its schedule of ranks did", left, self.target)
            return
        listed = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        log.info("%s: %s", left, listed)


def _exact(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _scores(adapter: AdaLoRALinear) -> Tensor:
    """Return the importance of each triplet `[r]`: that of its E, and the means of its row of A and column of B."""
    a, b, e = (mean * uncertainty for mean, uncertainty in (adapter.importance[name] for name in PARAMS))
    return e.flatten() + a.mean(dim=1) + b.mean(dim=0)


def rank_allocator(model: nn.Module, total_steps: int) -> RankAllocator | None:
    """Return what prunes the adapters of a model in training, None where none of them is AdaLoRA's."""
    if any(isinstance(module, AdaLoRALinear) for module in model.modules()):
        return RankAllocator(model, total_steps)
    return None
