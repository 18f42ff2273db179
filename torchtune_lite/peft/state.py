"""Which parts of a model are adapters, and which parameters are theirs."""

from torch import Tensor, nn

from torchtune_lite.peft.lora import LoRALinear


def adapter_modules(model: nn.Module) -> dict[str, LoRALinear]:
    """Finds the adapted projections of `model` by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Gives the live adapter parameters of `model` by their full names; empty for a model without adapters."""
    return {
        f"{name}.{param}": module.get_parameter(param)
        for name, module in adapter_modules(model).items()
        for param in module.adapter_params()
    }


def freeze_base(model: nn.Module) -> None:
    """Leaves only the adapter parameters of `model` to be trained."""
    trained = adapter_state(model)
    for name, param in model.named_parameters():
        param.requires_grad_(name in trained)
