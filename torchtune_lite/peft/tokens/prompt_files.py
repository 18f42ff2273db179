"""Virtual tokens in PEFT's files: one tensor, what the encoder makes of the embedding, or the embedding itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.peft.peft_file import WHOLE, PeftFile, Projection
from torchtune_lite.peft.tokens.prompts import PrefixTuning, PromptTuning, PTuning, VirtualTokensMethod
from torchtune_lite.peft.tokens.virtual_tokens import PromptDecoder
from torchtune_lite.utils import counted, get_logger

TENSOR = "prompt_embeddings"
OF_ALL = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "modules_to_save"}
OF_ALL |= {"token_dim", "num_layers", "num_attention_heads"}  # which the shape of the tensor tells
HARMLESS = {
    "PROMPT_TUNING": {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"},
    "P_TUNING": {*("encoder_hidden_size", "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout")},
    "PREFIX_TUNING": {"encoder_hidden_size", "prefix_projection", "init_weights"},
}
"""Fields that tell how the tensor was made."""
NAMES = {"PROMPT_TUNING": "prompt tuning", "P_TUNING": "P-tuning", "PREFIX_TUNING": "prefix tuning"}


class PromptFile(PeftFile):
    """Of prompt tuning, P-tuning or prefix tuning."""

    names = {TENSOR: TENSOR}
    compared = {"num_virtual_tokens": WHOLE}
    allowed = {"task_type": ("CAUSAL_LM",), "num_transformer_submodules": (1,)}
    on_projections = False

    def __init__(self, method: type[VirtualTokensMethod]) -> None:
        self.method, self.peft_type = method, method.peft_type
        self.harmless = OF_ALL | HARMLESS[self.peft_type]
        self.makes_embeddings = method.decoder is PromptDecoder

    def tensors(self, adapted: Sequence[Projection]) -> dict[str, Tensor]:
        """Return the virtual tokens."""
        [prompt] = adapted[0].parts
        return {TENSOR: prompt.made()}

    def assigned(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], values: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the embedding with its value; an encoder, which a file does not have, is left out from here on."""
        [prompt] = adapted[0].parts
        if prompt.encoder is not None:
            prompt.drop_encoder()
            get_logger().info("%s has what an encoder made, and goes on without one", source)
        yield prompt.embedding.weight, values[TENSOR]

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a `PromptLearningConfig`."""
        [prompt] = adapted[0].parts
        return {"num_virtual_tokens": prompt.num_tokens, "num_transformer_submodules": 1, **prompt.fields}

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return the method's name, and its number of virtual tokens."""
        return NAMES[self.peft_type], f", {counted(config['num_virtual_tokens'], 'virtual token')}"

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where the number of virtual tokens is another one."""
        given, ours = config["num_virtual_tokens"], adapted[0].parts[0].num_tokens
        return [] if given == ours else [f"num_virtual_tokens is {given}, the model's is {ours}"]

    def put_on(self, model: TransformerDecoder, config: Mapping[str, Any]) -> None:
        """Put virtual tokens without an encoder before the sequences of `model`; ValueError for too many."""
        self.method(config["num_virtual_tokens"]).put_on(model)
        if model.prompt.encoder is not None:
            model.prompt.drop_encoder()


PROMPT_FILES = [PromptFile(method) for method in (PromptTuning, PTuning, PrefixTuning)]
