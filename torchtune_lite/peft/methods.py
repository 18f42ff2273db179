"""The methods of adaptation that are read from and written to PEFT's files, by their `peft_type`."""

from torchtune_lite.peft.peft_file import PeftFile
from torchtune_lite.peft.projections.adalora import AdaLoRAFile
from torchtune_lite.peft.projections.ia3 import IA3File
from torchtune_lite.peft.projections.lora_file import LoRAFile
from torchtune_lite.peft.projections.vera import VeRAFile
from torchtune_lite.peft.tokens.prompt_files import PROMPT_FILES
from torchtune_lite.peft.tokens.trained_tokens import TokensFile

FILES: dict[str, PeftFile] = {
    file.peft_type: file for file in (LoRAFile(), AdaLoRAFile(), IA3File(), VeRAFile(), TokensFile(), *PROMPT_FILES)
}
