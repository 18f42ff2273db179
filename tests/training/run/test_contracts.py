"""The contracts of components: the library's own fit them, and others are named."""

import pytest
import torch
from torch import nn

from torchtune_lite import data, optim, training
from torchtune_lite.config.schema.contracts import built_misfit, misfit
from torchtune_lite.errors import ConfigError
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training.run.contracts import (
    AdaptedModel,
    Loss,
    Optimizer,
    Schedule,
    Tokenizer,
    WholeModel,
    checked_loss,
)

CONFIG = DecoderConfig(vocab_size=9, num_layers=1, num_heads=1, num_kv_heads=1, embed_dim=4, max_seq_len=8)


def test_the_librarys_own_components_fit(char_model):
    assert misfit(LinearCrossEntropyLoss, Loss) == built_misfit(LinearCrossEntropyLoss(), Loss) == ""
    param = nn.Parameter(torch.ones(2))
    for name in ("MasterAdamW", "PagedAdamW", "CPUOffloadAdamW", "StochasticAdamW"):
        built = getattr(optim, name)([param])
        assert misfit(type(built), Optimizer) == built_misfit(built, Optimizer) == ""
        schedule = training.get_cosine_schedule_with_warmup(built, 1, 3)
        assert misfit(training.get_cosine_schedule_with_warmup, Schedule) == built_misfit(schedule, Schedule) == ""
    assert built_misfit(data.SentencePieceTokenizer(char_model), Tokenizer) == ""
    for logger in (training.DiskLogger, training.StdoutLogger, training.WandBLogger, training.TensorBoardLogger):
        assert misfit(logger, training.MetricLoggerInterface) == ""


def test_the_schedules_of_torch_fit_but_the_one_that_waits_for_a_metric():
    schedules = vars(torch.optim.lr_scheduler)
    for name in ("StepLR", "OneCycleLR", "LinearLR", "CosineAnnealingLR"):
        assert misfit(schedules[name], Schedule) == ""
    assert "has step(metrics, epoch=…), and the recipe calls step()" in misfit(schedules["ReduceLROnPlateau"], Schedule)


def test_a_recipe_for_adapters_wants_some_and_one_for_all_weights_none():
    plain, adapted = decoder(CONFIG), lora_decoder(CONFIG, ["q_proj"])
    assert built_misfit(adapted, AdaptedModel) == built_misfit(plain, WholeModel) == ""
    assert built_misfit(plain, AdaptedModel).startswith(
        "has no adapter, and this recipe trains nothing else; use a lora_"
    )
    assert built_misfit(adapted, WholeModel).startswith("has adapters on a frozen base, and this recipe trains every")
    assert built_misfit(nn.Linear(1, 1), WholeModel).startswith("has no attribute 'config' or 'layers' or 'output' or")


class Mine(nn.Module):
    """A loss of the user's."""


LOGITS = torch.ones(2, 3, 5, requires_grad=True)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (lambda logits: logits.sum().item(), "returned float"),
        (lambda logits: [logits.sum()], "returned list"),
        (lambda logits: None, "returned NoneType"),
        (lambda logits: logits, "returned a tensor of shape [2, 3, 5]"),
        (lambda logits: logits.sum().detach(), "returned a tensor without a gradient"),
    ],
)
def test_what_a_loss_returns_is_checked(value, problem):
    with pytest.raises(ConfigError) as error:
        checked_loss(value(LOGITS), Mine())
    assert str(error.value) == f"loss: Mine {problem}; it must return a scalar, the sum over the label tokens"


def test_a_loss_needs_no_gradient_in_validation():
    loss = LOGITS.sum()
    assert checked_loss(loss, Mine()) is loss
    with torch.no_grad():
        assert checked_loss(loss.detach(), Mine()).ndim == 0


def test_the_loops_ask_for_nothing_that_a_contract_does_not_say():
    """Each method of an optimizer and a schedule that a recipe calls is in its contract."""
    import ast

    from torchtune_lite import catalog

    called = {"optimizer": Optimizer, "lr_scheduler": Schedule}
    for name in ("lora_finetune_single_device", "full_finetune_single_device"):
        tree = ast.parse(catalog.find_recipe(name).path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).removeprefix("self.")
                assert owner not in called or hasattr(called[owner], node.func.attr), ast.unparse(node)
