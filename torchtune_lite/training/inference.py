"""Model and tokenizer by a recipe's settings."""

from typing import Any

from torchtune_lite import config
from torchtune_lite.checkpoint import build_decoder, put_saved_adapters
from torchtune_lite.checkpoint.description import described
from torchtune_lite.data import check_vocabulary
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import fit_embeddings
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.training.environment import choose_dtype, get_dtype
from torchtune_lite.training.settings import RecipeSettings
from torchtune_lite.utils import counted, get_device, get_logger


def build_model(cfg: RecipeSettings) -> tuple[Any, Any, TransformerDecoder]:
    """Build checkpointer, tokenizer and model; of the weights only the shapes, which `checkpointer.load` fills."""
    checkpointer = config.instantiate(cfg.checkpointer)
    if cfg.dtype == "fp16":
        checkpointer.check_fp16()
    tokenizer = config.instantiate(cfg.tokenizer, defaults=checkpointer.tokenizer_args)
    model = build_decoder(checkpointer, cfg.model)
    fit_embeddings(model, tokenizer)
    return checkpointer, tokenizer, model


class Inference:
    """Model and tokenizer of a recipe that prompts a model: `build`, then the recipe checks its input, then `load`."""

    def __init__(self, cfg: RecipeSettings) -> None:
        self.cfg, self.log = cfg, get_logger(cfg.log_level)
        self.device = get_device(cfg.device)
        self.dtype = get_dtype(choose_dtype(cfg.dtype, self.device), self.device)

    def build(self) -> tuple[Any, TransformerDecoder]:
        """Build tokenizer and model, with the adapters that the checkpointer names, no weights; check that they fit.

        ConfigError for a classifier, which gives no token its probability.
        """
        self.checkpointer, self.tokenizer, self.model = build_model(self.cfg)
        if classes := self.model.config.num_classes:
            raise ConfigError(
                f"the model is a classifier, of {counted(classes, 'class', 'classes')}, and writes no text"
            )
        put_saved_adapters(self.checkpointer, self.model)
        check_vocabulary(self.tokenizer, self.model.config.vocab_size)
        return self.tokenizer, self.model

    def load(self) -> None:
        """Say which model it is, and read its weights; nothing is dropped out from here on."""
        self.log.info(described(self.checkpointer.family.name, self.checkpointer.decoder_args, self.tokenizer))
        self.checkpointer.load(self.model, device=self.device, dtype=self.dtype)
        self.model.eval()

    def positions(self, key: str, asked: int | None) -> int:
        """Return the tokens of a sequence that the recipe's `key` asks for, None for as many as the model takes.

        More than that are cut to it, with a line.
        """
        most = self.model.config.max_seq_len
        if asked is not None and asked > most:
            self.log.info("%s: %d is more than the model's %d positions, and cut to them", key, asked, most)
        return most if asked is None else min(asked, most)
