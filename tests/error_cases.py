"""Bad inputs by section: the mistake, the command, the files beside it; docs/errors.md shows the answers."""

import json

from tests.error_files import (
    ANY,
    CHECK,
    CONFIG,
    EVALUATE,
    GENERATE,
    ROW,
    RUN,
    Case,
    adapter_config,
    changed_weights,
    chat,
    config,
    flipped,
    hf_config,
    index,
    other_format,
    own_adapter,
    pickled,
    rows,
    truncated,
)

LOSS = "torchtune_lite.modules.loss"
VAL = """dataset_val:
- _component_: torchtune_lite.datasets.instruct_dataset
  source: train.jsonl
  colum_map: {}
dataset:"""
BOMB = "x_a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]" + "".join(
    f"\nx_{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DATASET = "dataset:\n  _component_: torchtune_lite.datasets.instruct_dataset\n  source: train.jsonl\n"
PACKED_AND_NOT = "dataset:\n" + "".join(
    f"- {{_component_: torchtune_lite.datasets.instruct_dataset, source: train.jsonl, packed: {packed}}}\n"
    for packed in (True, False)
)
UPLOAD = "upload out me/model --adapter --base org/base"
SET = "{_component_: torchtune_lite.datasets.instruct_dataset, source: train.jsonl, "
IDS = """class Rows:
    def __init__(self, tokenizer):
        self.ids = [1, 5000, 2]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"tokens": self.ids, "labels": [*self.ids[1:], -100]}
"""
OWN = config("  source: train.jsonl\n", "")


def own(module: str, body: str) -> dict[str, str]:
    """Return a module with the class Rows, a data set of the user's own, and my.yaml for it."""
    text = f"class Rows:\n    def __init__(self, tokenizer):\n        self.ids = [5, 6, 7]\n\n    {body}\n"
    return OWN | {f"{module}.py": text}


def sample(module: str, tokens: str, labels: str) -> dict[str, str]:
    """Return such a module with one sample."""
    returned = f"{{'tokens': {tokens}, 'labels': {labels}}}"
    return own(module, f"__len__ = lambda self: 1\n    __getitem__ = lambda self, i: {returned}")


SYSTEM, ASKED, ANSWERED = ({"role": role, "content": "a"} for role in ("system", "user", "assistant"))
KWARGS, CHAT = "tokenizer.chat_template_kwargs", "tokenizer.prompt_template=chat_template"
TEMPLATE = "base/chat_template.jinja"
REFUSES = "{{ raise_exception('Conversation roles must alternate') }}"
INCLUDED = {"a.yaml": "epoch: 3\n"}
GEMMA = hf_config(model_type="gemma", hidden_activation="gelu_pytorch_tanh")
MOE = hf_config(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"])
OWN_FORM = "tokenizer.prompt_template=null"
THINKS = {"base/chat_template.jinja": "{{ strftime_now('%Y') if enable_thinking }}{{ messages[0].content }}"}
DISK = "torchtune_lite.checkpoint.store.disk"
LORA = "lora_llama2\n  lora_attn_modules: [q_proj]\n  lora_rank: 2"
THEIR_MODEL = ".models.llama3_2_vision.lora_llama3_2_vision_11b"
THEIRS = """import torchtune
from torchtune import config


@config.parse
def recipe_main(cfg):
    print(cfg)
"""
CROSS_ENTROPY = "torch.nn.CrossEntropyLoss"
TWO_ARGUMENTS = """from torch import nn


class Loss(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


def to_messages(row, tokenizer):
    return {"messages": []}
"""
FUNCTION = "def loss(output, hidden, labels):\n    return output(hidden).sum()\n"
NO_TENSOR = TWO_ARGUMENTS.replace("logits, labels):\n        return", "output, hidden, labels):\n        return 0.5 #")
SLIP = """from torch import nn


class Loss(nn.Module):
    def forward(self, output, hidden, labels):
        return output(hidden).sum() * scale


def to_messages(row):
    return {"messages": row["turns"]}
"""
OWN_TRANSFORM = DATASET.replace("instruct_dataset", "sft_dataset\n  message_transform: own.to_messages")
ADAPTER = "out/epoch_0/adapter/adapter_model.safetensors"
BASE_GONE = {"base_model_name_or_path": "/models/gone"}
SHARD = "model-00001-of-00002.safetensors"
WEIGHT = "model.norm.weight"
ADAPTED = f"{RUN} output_dir=new checkpointer.adapter_checkpoint=out/epoch_0/adapter"
RESUME = f"{RUN} resume_from_checkpoint=True epochs=2"


def logger(name: str, arguments: str) -> str:
    """Return the command of a run with a metric logger."""
    return f"{RUN} 'metric_logger={{_component_: torchtune_lite.training.{name}, {arguments}}}'"


CASES: dict[str, tuple[int, list[Case]]] = {
    "Command line": (
        2,
        [
            Case("A verb that does not exist", "vlaidate my.yaml"),
            Case("An option that does not exist", "ls --sort"),
            Case("No recipe", "run --config my.yaml"),
            Case("No config", "run exact_match_eval"),
            Case("A recipe that does not exist", "run lora_finetune_singel_device --config my.yaml"),
            Case("A config that does not exist", "validate llama2/7B_qlora_single"),
            Case("A config for another recipe", "run full_finetune_single_device --config my.yaml"),
            Case(
                "torchrun's arguments behind the recipe",
                "run lora_finetune_single_device --nproc_per_node 2 --config my.yaml",
            ),
            Case("Several processes of a recipe for one", "run --nproc_per_node 2 generate --config generation"),
            Case("A copy onto a file that exists", "cp llama2/7B_lora_single_device my.yaml"),
            Case("A copy into a folder that is missing", "cp llama2/7B_lora_single_device no/such.yaml"),
            Case("A config without --config", "run lora_finetune_single_device my.yaml seed=1"),
            Case("A config in the place of the recipe", "run my.yaml seed=1"),
            Case("A config in the place of the verb", "my.yaml"),
            Case("A recipe in the place of the verb", "lora_finetune_single_device --config my.yaml"),
            Case("Two configs", f"{RUN} --config=other.yaml"),
            Case("A recipe of torchtune that is not here", "run qat_distributed --config my.yaml"),
            Case("A torchtune recipe script", "run theirs.py --config my.yaml", {"theirs.py": THEIRS}),
        ],
    ),
    "Overrides": (
        2,
        [
            Case("A key that does not exist, with a section", f"{CHECK} modle.lora_rank=16"),
            Case("A word without =", f"{CHECK} lr"),
            Case("Dashes", f"{RUN} --lr 1e-5"),
            Case("None for null", f"{CHECK} seed=None"),
            Case("An unclosed list", f"{CHECK} 'model.lora_attn_modules=[q_proj'"),
            Case("A number with a comma", f"{CHECK} optimizer.lr=2e-5,"),
            Case("Zero where there must be one", f"{CHECK} batch_size=0"),
            Case("A negative number", f"{CHECK} epochs=-1"),
            Case("An empty value for a number", f"{CHECK} epochs="),
            Case("Removing a key that does not exist", f"{CHECK} ~lr_schedule"),
            Case("An unsupported dtype", f"{CHECK} dtype=fp8"),
            Case("A model that is split over processes", f"{CHECK} parallel.data=fsdp parallel.offload=True"),
            Case("A key within a key that does not exist", f"{CHECK} parallel.timout=5"),
            Case("A key below a value", f"{CHECK} seed.x=1"),
            Case("A device that does not exist", f"{RUN} device=gpu"),
            Case("A key without its section", f"{CHECK} lora_rank=16"),
            Case("A key in the wrong section", f"{CHECK} model.lr=1e-4"),
            Case("Removing a key without its section", f"{CHECK} ~lora_rank"),
            Case("Another word for a value", f"{CHECK} dtype=bfloat16"),
            Case("The home folder of an unknown user", f"{CHECK} output_dir=~nobody-here/out"),
            Case("A prompt that is a number", f"{GENERATE} prompt=2024"),
            Case("A prompt of an unknown role", f"{GENERATE} 'prompt={{human: hi}}'"),
            Case("A prompt that fills the model", f"{GENERATE} model.max_seq_len=4 prompt=hi"),
        ],
    ),
    "Config file": (
        2,
        [
            Case("A misspelt key", CHECK, config("epochs: 1", "epoch: 1")),
            Case(
                "An argument that a component does not have",
                CHECK,
                config("lr: 1e-3", "lr: 1e-3\n  weight_decy: 0.1"),
            ),
            Case("The same in a list", CHECK, config("dataset:", VAL)),
            Case("A wrong type", CHECK, config("lora_rank: 2", "lora_rank: two")),
            Case("A list for a text", CHECK, config("source: train.jsonl", "source: [train.jsonl]")),
            Case("`yes` for a text", CHECK, config("output_dir: out", "output_dir: yes")),
            Case("A number in base 60", CHECK, config("epochs: 1", "epochs: 1:30")),
            Case("A number with a leading zero", CHECK, config("epochs: 1", "epochs: 010")),
            Case("A tab", CHECK, config("  lr: 1e-3", "\tlr: 1e-3")),
            Case("A syntax error", CHECK, config("epochs: 1", "epochs: [1")),
            Case("A file that is not UTF-8", CHECK, {"my.yaml": CONFIG.encode() + b"# caf\xe9\n"}),
            Case("An empty file", f"{CHECK} --recipe lora_finetune_single_device", {"my.yaml": ""}),
            Case("A list at the top", f"{CHECK} --recipe lora_finetune_single_device", {"my.yaml": "- a\n"}),
            Case("A duplicate key", CHECK, config("epochs: 1", "epochs: 1\nepochs: 2")),
            Case("A missing key", CHECK, config("output_dir: out\n", "")),
            Case("No recipe key", CHECK, config("recipe: lora_finetune_single_device\n", "")),
            Case("A component that does not exist", CHECK, config("epochs: 1", f"loss: {LOSS}.LinearCrossEntropyLos")),
            Case("A missing argument", CHECK, config("  source: train.jsonl\n", "")),
            Case("A component that is a module", CHECK, config("epochs: 1", f"loss: {LOSS}")),
            Case("A component without a path", CHECK, config("torch.optim.AdamW", "AdamW")),
            Case("A mapping without _component_", CHECK, config("  _component_: torch.optim.AdamW\n", "")),
            Case("An argument that the recipe passes", CHECK, config("lr: 1e-3", "lr: 1e-3\n  params: []")),
            Case("A reference to no key", CHECK, config("{checkpointer.ch", "{checkpointr.ch")),
            Case("References in a circle", CHECK, config("output_dir: out", "output_dir: ${x_a}\nx_a: ${output_dir}")),
            Case("A variable that is not set", CHECK, config("_dir: out", "_dir: ${oc.env:NO_SUCH_VARIABLE}")),
            Case("An unsupported torchtune key", CHECK, config("epochs: 1", "epochs: 1\nfsdp_cpu_offload: True")),
            Case("patience without validation", f"{RUN} patience=2"),
            Case(
                "Several mistakes, all at once",
                f"{CHECK} batch_size=0",
                config("epochs: 1", "epoch: 1\nlr_schduler: null"),
            ),
            Case("A key that nothing refers to", CHECK, config("output_dir: out", "root: out\noutput_dir: out")),
            Case("A file in UTF-16", CHECK, {"my.yaml": CONFIG.encode("utf-16")}),
            Case("An unsupported torchtune family", CHECK, config("_lite.models.llama2.lora_llama2", THEIR_MODEL)),
            Case("An unsupported argument of a loss", f"{CHECK} loss={CROSS_ENTROPY} loss.label_smoothing=0.1"),
            Case("An optimizer that needs a closure", f"{CHECK} optimizer=torch.optim.LBFGS"),
            Case("A loss with another signature", f"{CHECK} loss=own.Loss", {"own.py": TWO_ARGUMENTS}),
            Case("A function instead of a loss", f"{CHECK} loss=own.loss", {"own.py": FUNCTION}),
            Case("A loss that returns no tensor", f"{RUN} loss=own.Loss", {"own.py": NO_TENSOR}),
            Case("A transform of two arguments", CHECK, config(DATASET, OWN_TRANSFORM) | {"own.py": TWO_ARGUMENTS}),
            Case("An include that does not exist", CHECK, config("recipe:", "include: qlra\nrecipe:")),
            Case("An include of a file that is missing", CHECK, config("recipe:", "include: base.yaml\nrecipe:")),
            Case("An include of itself", CHECK, config("recipe:", "include: my.yaml\nrecipe:")),
            Case("An include of a file elsewhere", CHECK, config("recipe:", "include: ../other.yaml\nrecipe:")),
            Case("Two includes", CHECK, config("recipe:", "include: [lora, full]\nrecipe:")),
            Case("A mistake in an included file", CHECK, config("recipe:", "include: a.yaml\nrecipe:") | INCLUDED),
            Case(
                "A model without adapters",
                RUN,
                config("lora_llama2\n  lora_attn_modules: [q_proj]\n  lora_rank: 2", "llama2"),
            ),
            Case(
                "Adapters where all weights are trained",
                "run full_finetune_single_device --config my.yaml",
                config("lora_finetune_single_device", "full_finetune_single_device"),
            ),
        ],
    ),
    "Output folder": (
        2,
        [
            Case("A file", f"{RUN} output_dir=my.yaml"),
            Case("A folder below a file", f"{RUN} output_dir=my.yaml/out"),
            Case("The checkpoint's folder", f"{RUN} output_dir=base"),
            Case("The same, with torchtune's key", f"{RUN} checkpointer.output_dir=base"),
            Case("No folder", f"{RUN} output_dir="),
        ],
    ),
    "Data": (
        3,
        [
            Case("A file that is missing", f"{RUN} dataset.source=data/*.jsonl"),
            Case("A model's folder", f"{RUN} dataset.source=base"),
            Case(
                "A folder of two kinds of files", f"{RUN} dataset.source=data", {"data/a.csv": "a", "data/b.txt": "b"}
            ),
            Case("A CSV file without the column", f"{RUN} dataset.source=a.csv", {"a.csv": "input,answer\na,b\n"}),
            Case("A list of packed and unpacked data sets", RUN, config(DATASET, PACKED_AND_NOT), code=2),
            Case("Packs to be padded", f"{RUN} dataset.packed=True collate=padded", code=2),
            Case("Weights of a single data set", f"{RUN} dataset_weights=[1,2]", code=2),
            Case("A stream without an end", f"{RUN} dataset.streaming=True", code=2),
            Case("An empty file", RUN, rows()),
            Case("White space only", RUN, rows("", "  ")),
            Case("An empty list", RUN, rows("[]")),
            Case("Malformed JSON in a line", RUN, rows(ROW, '{"input": "a" "output": "b"}')),
            Case("A line that is not an object", RUN, rows(ROW, '"a"')),
            Case("Bytes that are not UTF-8", RUN, rows(ROW, b'{"input": "caf\xe9", "output": ""}')),
            Case("A compressed file under another name", RUN, rows(b"\x1f\x8b\x08\x00")),
            Case("Half a surrogate pair", RUN, rows('{"input": "\\ud83d", "output": "b"}')),
            Case("A column that is missing", RUN, rows({"prompt": "a", "completion": "b"})),
            Case("null for a text", RUN, rows(ROW, {"input": None, "output": "b"})),
            Case("A list for a text", RUN, rows({"input": ["a"], "output": "b"})),
            Case("An unknown role", RUN, chat([("user", "a"), ("assistent", "b")])),
            Case("Two questions in a row", RUN, chat([("user", "a"), ("user", "b")])),
            Case("Two answers in a row", RUN, chat([("user", "a"), ("assistant", "b"), ("assistant", "c")])),
            Case("A conversation of one", RUN, chat([("user", "a")])),
            Case("No conversation", RUN, chat("hello")),
            Case("A sample that is too long", f"{RUN} tokenizer.max_seq_len=4 dataset.on_long_sample=error"),
            Case("No sample with a label", f"{RUN} tokenizer.max_seq_len=4"),
            Case("A split that is not there", f"{RUN} dataset.split=test"),
            Case("An unknown policy", f"{CHECK} dataset.on_bad_sample=ignore", code=2),
            Case("No validation set in the list", f"{RUN} dataset_val=[]", code=2),
            Case(
                "A validation set without an end",
                RUN,
                config("epochs: 1", f"dataset_val: {SET}streaming: True}}"),
                code=2,
            ),
            Case(
                "A mistake in one of several validation sets",
                RUN,
                config("epochs: 1", f"dataset_val: {{a: {SET}}}, b: {SET}tarin: 1}}}}"),
                code=2,
            ),
            Case("UTF-16, as PowerShell writes it", RUN, {"train.jsonl": json.dumps(ROW).encode("utf-16")}),
            Case("Lines that end with a carriage return alone", RUN, {"train.jsonl": f"{json.dumps(ROW)}\r" * 2}),
            Case("A list on each line", RUN, rows([ROW], [ROW])),
            Case("An address", f"{RUN} dataset.source=https://example.com/train.jsonl"),
            Case("A flag that is neither true nor false", RUN, chat([ASKED, ANSWERED | {"loss": "no"}])),
            Case("A tool call without a name", RUN, chat([ASKED, ANSWERED | {"tool_calls": [{"id": "1"}]}])),
            Case("Two system prompts", RUN, chat([SYSTEM, ASKED, ANSWERED], system="b")),
            Case("Tools that are not objects", RUN, chat([ASKED, ANSWERED], tools="add(a, b)")),
            Case(
                "Pairs in a recipe for samples",
                RUN,
                config("instruct_dataset", "preference_dataset")
                | rows({"prompt": "a", "chosen": "b", "rejected": "c"}),
            ),
            Case("Labels that are not shifted", f"{RUN} dataset=same.Rows", sample("same", "self.ids", "self.ids")),
            Case("Fewer labels than tokens", f"{RUN} dataset=fewer.Rows", sample("fewer", "self.ids", "self.ids[1:]")),
            Case("Tokens that are not ints", f"{RUN} dataset=halves.Rows", sample("halves", "[0.5]", "[-100]")),
            Case(
                "A data set that is an iterable",
                f"{RUN} dataset=endless.Rows",
                own("endless", "__iter__ = lambda self: iter([])"),
            ),
            Case("An evaluation without a row that fits", f"{EVALUATE} model.max_seq_len=8"),
            Case("A file where the result's folder should be", f"{EVALUATE} output_dir=my.yaml", code=2),
        ],
    ),
    "Tokenizer": (
        3,
        [
            Case("A file that is missing", f"{RUN} tokenizer.path=no.model"),
            Case("A git-lfs pointer", RUN, {"base/tokenizer.model": "version https://git-lfs.github.com/spec/v1\n"}),
            Case("A web page", RUN, {"base/tokenizer.model": "<!DOCTYPE html><html></html>"}),
            Case("A truncated file", RUN, prepare=truncated("base/tokenizer.model", 1000)),
            Case("An empty file", RUN, {"base/tokenizer.model": ""}),
            Case("tokenizer.json", f"{RUN} tokenizer.path=base/config.json"),
            Case("More tokens than embeddings", RUN, hf_config(vocab_size=1000)),
            Case("Samples longer than the model's positions", f"{RUN} tokenizer.max_seq_len=9999", code=2),
            Case(
                "A data set with ids that the model does not have",
                f"{RUN} dataset=rows.Rows",
                config("  source: train.jsonl\n", "") | {"rows.py": IDS},
            ),
            Case("Variables without a chat template", f"{RUN} '{KWARGS}={{enable_thinking: False}}'", code=2),
            Case("A misspelt variable", f"{RUN} {CHAT} '{KWARGS}={{enable_thinkng: False}}'", THINKS, code=2),
            Case("A missing chat template", f"{RUN} {CHAT}"),
            Case("A chat template that is not valid Jinja", f"{RUN} {CHAT}", {TEMPLATE: "{% if messages %}"}),
            Case("A chat template that refuses the row", f"{RUN} {CHAT}", {TEMPLATE: REFUSES}),
            Case("An invalid date", f"{RUN} {CHAT} '{KWARGS}={{strftime_now: today}}'", THINKS, code=2),
        ],
    ),
    "Any model": (
        4,
        [
            Case("No folder", ANY.replace(" model_dir=base", ""), code=2),
            Case("No data", ANY.replace(" data=train.jsonl", ""), code=2),
            Case("The name of a model for its folder", ANY.replace("=base", "=Qwen/Qwen3-4B")),
            Case("An architecture that is not served", "validate lora model_dir=base data=train.jsonl", MOE),
            Case("A base model, which has no chat template", ANY, code=3),
            Case("Columns of no known form", f"{ANY} {OWN_FORM}", rows({"q": "a", "a": "b"}), code=3),
            Case("A rotation of no known kind", ANY, hf_config(rope_scaling={"rope_type": "spiral"})),
            Case("An option that is not computed", ANY, hf_config(mlp_bias=True)),
            Case("fp16 for a Gemma", f"{ANY} dtype=fp16", GEMMA, code=2),
            Case(
                "An adapter on an output that is the embedding",
                f"{ANY} {OWN_FORM} model.apply_lora_to_output=True",
                hf_config(tie_word_embeddings=True),
                code=2,
            ),
            Case(
                "Projections that NF4 does not fit",
                f"{ANY.replace(' lora ', ' qlora ')} {OWN_FORM} model.quantize_unsupported=error",
                hf_config(hidden_size=96),
                code=2,
            ),
            Case(
                "Arguments of adapters without a projection",
                f"{ANY} {OWN_FORM} model.lora_attn_modules=[] model.apply_lora_to_mlp=False",
                code=2,
            ),
            Case("Rows of new tokens without one", f"{ANY} {OWN_FORM} model.train_embeddings=new", code=2),
            Case("Tokens added to a SentencePiece model", f"{ANY} {OWN_FORM} tokenizer.add_tokens=[a]", code=2),
            Case(
                "Virtual tokens beside adapters",
                f"{ANY.replace(' lora ', ' prompt_tuning ')} {OWN_FORM} model.apply_lora_to_mlp=True",
                code=2,
            ),
            Case(
                "A text to start as without the key that asks for it",
                f"{ANY.replace(' lora ', ' prompt_tuning ')} {OWN_FORM} model.adapter.prompt_tuning_init=TEXT",
                code=2,
            ),
        ],
    ),
    "Checkpoint": (
        4,
        [
            Case("A folder that is missing", f"{RUN} checkpointer.checkpoint_dir=missing"),
            Case("No config.json", RUN, prepare=lambda folder: (folder / "base/config.json").unlink()),
            Case("A config.json that is not JSON", RUN, {"base/config.json": "{"}),
            Case("No weights", RUN, prepare=lambda folder: (folder / "base/model.safetensors").unlink()),
            Case("A shard that is missing", RUN, prepare=index(a=SHARD, b="x.safetensors")),
            Case("An index that names a file elsewhere", RUN, prepare=index(a="../../etc/passwd")),
            Case("An index without a map", RUN, prepare=index(a=3)),
            Case("A truncated file", RUN, prepare=truncated("base/model.safetensors", 100_000)),
            Case("An empty file", RUN, {"base/model.safetensors": b""}),
            Case("A git-lfs pointer", RUN, {"base/model.safetensors": "version https://git-lfs.github.com/spec/v1\n"}),
            Case("A web page", RUN, {"base/model.safetensors": "<html>403</html>"}),
            Case("A PyTorch file under another name", RUN, {"base/model.safetensors": b"PK\x03\x04" + bytes(99)}),
            Case("A header of 2^63 bytes", RUN, {"base/model.safetensors": b"\xff" * 7 + b"\x7f" + bytes(99)}),
            Case("Another size", RUN, hf_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=2)),
            Case("More layers", RUN, hf_config(num_hidden_layers=6)),
            Case("Another family", RUN, hf_config(model_type="gpt2")),
            Case("A quantised export", RUN, hf_config(quantization_config={"quant_method": "gptq"})),
            Case("A weight that is missing", RUN, prepare=changed_weights(lambda weights: weights.pop(WEIGHT))),
            Case("An extra weight", RUN, prepare=changed_weights(lambda w: w.update(extra=w[WEIGHT].clone()))),
            Case("Weights in int8", RUN, prepare=changed_weights(lambda w: w.update({WEIGHT: w[WEIGHT].char()}))),
            Case("A weight that is NaN", RUN, prepare=changed_weights(lambda w: w[WEIGHT].fill_(float("nan")))),
            Case("An adapter of another method", ADAPTED, prepare=adapter_config(peft_type="BOFT"), trained=True),
            Case("A merge of no adapter", f"{RUN} checkpointer.merge_adapter=True", code=2),
            Case(
                "An adapter that starts from changed base weights",
                ADAPTED,
                prepare=adapter_config(init_lora_weights="pissa"),
                trained=True,
            ),
            Case(
                "An adapter with fully trained modules",
                ADAPTED,
                prepare=adapter_config(modules_to_save=["lm_head"]),
                trained=True,
            ),
            Case(
                "A single file beside an index of others",
                RUN,
                {"base/model.safetensors.index.json": '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'},
            ),
            Case("Files that are not there", f"{RUN} checkpointer.checkpoint_files=[pytorch_model.bin]"),
            Case("Two rope bases", RUN, hf_config(rope_theta=500.0, rope_parameters={"rope_theta": 10000.0})),
            Case("An adapter whose rank is a text", ADAPTED, prepare=adapter_config(r="2"), trained=True),
        ],
    ),
    "Resuming": (
        4,
        [
            Case("A folder that is not a checkpoint", f"{RUN} resume_from_checkpoint=base"),
            Case("A new run in the folder of another", RUN, trained=True, code=2),
            Case("Another seed", f"{RESUME} seed=1", trained=True),
            Case("Another rank", f"{RESUME} model.lora_rank=4", trained=True),
            Case("Other data", RESUME, rows(ROW, ROW, ROW), trained=True),
            Case("A flipped bit", RESUME, prepare=flipped(ADAPTER), trained=True),
            Case("A truncated file", RESUME, prepare=truncated(ADAPTER, 999), trained=True),
            Case("A checkpoint of a later version", RESUME, prepare=other_format, trained=True),
            Case("Another dtype", f"{RESUME} dtype=bf16", trained=True),
            Case("The same rows with other labels", f"{RESUME} dataset.train_on_input=True", trained=True),
        ],
    ),
    "Export and import": (
        2,
        [
            Case("A folder that does not exist", "export nowhere --to gguf", code=4),
            Case("Another kind", "export base --to onnx"),
            Case("The adapter of a merged model", "export base --to adapter"),
            Case("A folder that is there", "export base --to hf --out base"),
            Case("A path for a name", "export base --to gguf --name other/model"),
            Case("A file that is not a GGUF", "import my.yaml out", code=4),
            Case("A GGUF that is cut off", "import a.gguf out", {"a.gguf": b"GGUF\x03\0\0\0\x01"}, code=4),
            Case("A weight that is not a number", "merge out/adapter=half --out both"),
            Case("A merged model among adapters", "merge base --out both"),
        ],
    ),
    "A folder to ask": (
        4,
        [
            Case("A file", "chat train.jsonl"),
            Case("A folder without a model", "generate . hi"),
            Case("A run that has saved nothing yet", "chat new", {"new/config.yaml": "a: 1\n"}),
            Case("A checkpoint that is being written", "chat out/.tmp-epoch_0-7", {"out/.tmp-epoch_0-7/a": ""}),
            Case("A checkpoint that is cut off", "chat out", prepare=truncated(ADAPTER, 100), trained=True),
            Case("An adapter whose base is gone", "chat my_adapter", prepare=own_adapter(**BASE_GONE), trained=True),
            Case(
                "An adapter of a larger model",
                "chat my_adapter --base base device=cpu",
                hf_config(num_hidden_layers=2),
                own_adapter(),
                trained=True,
            ),
            Case("A base for a whole model", "chat base --base base"),
            Case(
                "A classifier",
                "chat base device=cpu",
                hf_config(architectures=["LlamaForSequenceClassification"], num_labels=3),
                code=2,
            ),
            Case("Two prompts", "generate base Tell me", code=2),
            Case("An option that is not a key", "chat base --temprature 0", code=2),
            Case("No prompt", "generate base device=cpu", code=2),
            Case("A file to answer, and none for the answers", "generate base --file train.jsonl device=cpu", code=2),
            Case(
                "A file of other things for the answers",
                "generate base --file train.jsonl --out my.yaml device=cpu seed=0",
                code=2,
            ),
        ],
    ),
    "Scores": (
        2,
        [
            Case("Nothing to score by", "eval base"),
            Case("A metric that is not known", f"{EVALUATE} metrics=[f2]"),
            Case("A regular expression that is broken", f"{EVALUATE} extract=regex extract_regex='(a'"),
            Case("A regular expression that is not asked for", f"{EVALUATE} extract_regex=a"),
            Case("Expected texts without a number", f"{EVALUATE} extract=number", code=3),
            Case("A template without a place for the question", f"{EVALUATE} question_template=a", code=3),
            Case("A text that is missing", "eval base --text no.txt", code=3),
            Case("A text that is not UTF-8", "eval base --text a.txt", {"a.txt": b"caf\xe9"}, code=3),
            Case("A text without a word", "eval base --text a.txt", {"a.txt": ""}, code=3),
            Case("Windows that skip tokens", "eval base --text train.jsonl max_seq_len=8 stride=9"),
            Case("Tasks in a folder that is missing", "eval base --tasks a include_path=tasks"),
            Case(
                "A chat template that is not there",
                "eval base --tasks a include_path=tasks apply_chat_template=True",
                {"tasks/a.yaml": "task: a\n"},
            ),
            Case(
                "Answers to texts in training",
                f"{RUN} 'dataset_eval={{_component_: torchtune.datasets.text_completion_dataset, source: a.txt}}'",
                {"a.txt": "some words"},
            ),
        ],
    ),
    "Your own code": (
        1,
        [
            Case("A bug in a loss", f"{RUN} loss=own.Loss", {"own.py": SLIP}),
            Case("A bug in a transform", RUN, config(DATASET, OWN_TRANSFORM) | {"own.py": SLIP}),
            Case("A library that is not installed", f"{CHECK} loss=own.Loss", {"own.py": "import no_such_library\n"}),
            Case("A module with a syntax error", f"{CHECK} loss=own.Loss", {"own.py": "class Loss:\ndef f(): ...\n"}),
            Case("A bug in a recipe", "run mine.py --config my.yaml", {"mine.py": "import sys\nsys.exit(main())\n"}),
        ],
    ),
    "What a config or file from elsewhere may not do": (
        2,
        [
            Case("Run a function of the system", CHECK, config("torch.optim.AdamW", "os.system")),
            Case(
                "Reach it through an allowed package",
                CHECK,
                config("torch.optim.AdamW", "torch.nn.functional.importlib.import_module"),
            ),
            Case("Import a package", CHECK, config("torch.optim.AdamW", "sentencepiece.SentencePieceTrainer")),
            Case(
                "Make an object by a YAML tag",
                CHECK,
                config("epochs: 1", "epochs: !!python/object/apply:os.system [id]"),
            ),
            Case("Grow without bound", CHECK, config("epochs: 1", BOMB)),
            Case("Nest without bound", CHECK, config("epochs: 1", "epochs: " + "[" * 1200 + "]" * 1200)),
            Case(
                "Name a script elsewhere",
                CHECK,
                config("lora_finetune_single_device", "../elsewhere.py"),
                lambda folder: (folder.parent / "elsewhere.py").touch(),
            ),
            Case("Run code from a pickle", RUN, prepare=pickled, code=4),
            Case("Bring its own code", f"{CHECK} checkpointer.trust_remote_code=True"),
            Case("A secret on the command line", f"{CHECK} metric_logger.api_key=0123456789"),
            Case("Run the library's own machinery", CHECK, config("torch.optim.AdamW", f"{DISK}.remove")),
            Case("Run it as an argument", f"{CHECK} 'dataset.filter_fn={{_component_: {DISK}.remove, path: out}}'"),
            Case("Run a method", CHECK, config("torch.optim.AdamW", "torchtune.training.FullModelHFCheckpointer.load")),
            Case("Take a secret from the environment", CHECK, config("_dir: out", "_dir: out/${oc.env:HF_TOKEN}")),
            Case("Send the key of W&B elsewhere", logger("WandBLogger", "settings: {base_url: https://a.b}")),
            Case("Send the code of the run", logger("WandBLogger", "save_code: True")),
            Case("Write into a file that is not a log", logger("DiskLogger", "log_dir: ., filename: my.yaml")),
            Case("Write outside the log's folder", logger("DiskLogger", "log_dir: ., filename: ../a.txt")),
            Case(
                "Publish a file through a link",
                f"{RUN} tokenizer.prompt_template=chat_template",
                {"secret": "x"},
                lambda folder: (folder / "base/chat_template.jinja").symlink_to(folder / "secret"),
                code=3,
            ),
            Case("Fill the screen", CHECK, config("epochs: 1", f"epochs: {'a' * 20_000}")),
        ],
    ),
    "Serving and uploading": (
        2,
        [
            Case("A port that does not exist", "serve base port=70000 device=cpu"),
            Case("A repository without its owner", "upload out model"),
            Case("An adapter whose base is known by its folder alone", "upload out me/model --adapter", trained=True),
            Case("A run that has kept its adapter alone", "upload out me/model", trained=True),
            Case("An upload of what was changed", UPLOAD, prepare=flipped(ADAPTER), trained=True, code=4),
            Case("An upload of what nothing proves whole", "upload base me/model", code=4),
        ],
    ),
}
