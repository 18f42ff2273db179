"""From a file of questions and answers to llama.cpp's engine: each command is the one that the last has printed."""

import json
import re
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path

from tests.export.engine import Engine
from torchtune_lite import assets
from torchtune_lite.data import SentencePieceTokenizer

ASSETS = Path(assets.__file__).parent
TRAINED = (
    f"tune run lora_finetune_single_device --config qlora model_dir={ASSETS / 'base'} data=qa.jsonl batch_size=32 "
    "gradient_accumulation_steps=1 optimizer.lr=4e-3 model.lora_alpha=32 seed=0 "
    "tokenizer.prompt_template=torchtune_lite.models.llama2.Llama2ChatTemplate 'output_dir=runs/my run' dtype=fp32"
)


def test_each_command_leads_to_the_next(tmp_path, tune):
    def run(command: str, *more: str, given: str | None = None) -> tuple[str, str]:
        words = [*shlex.split(command)[1:], *more]
        if given is None:
            done = tune(*words)
        else:
            words = [sys.executable, "-m", "torchtune_lite", *words]
            done = subprocess.run(words, input=given, capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stdout, done.stderr

    def printed(log: str, verb: str) -> str:
        return re.findall(rf"(tune {verb} .*)", log)[-1]

    with (ASSETS / "addresses_train.jsonl").open() as rows:
        qa = [json.loads(line) for line in islice(rows, 1250)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in qa[:1200]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in qa[1200:1216]))
    question = qa[1240]["input"]

    _, log = run(TRAINED, "device=cpu")
    answer, log = run(printed(log, "chat"), "device=cpu", "temperature=0", given=question + "\n")
    assert answer.startswith('{"')  # as in the rows: it has learnt that much
    scores, log = run(printed(log, "eval").replace("FILE.jsonl", "test.jsonl"), "device=cpu", "extract=json")
    assert re.search(r"exact match .* of 16 rows", scores)
    out, _ = run(printed(log, "export"), "--type", "f32")
    [file] = tmp_path.glob("runs/**/*.gguf")
    assert file.name in out

    engine, tokenizer = Engine(file), SentencePieceTokenizer(ASSETS / "base/tokenizer.model")
    ids = engine.greedy(engine.chat([{"role": "user", "content": question}]), max_tokens=60)
    assert tokenizer.decode(ids).strip() == answer.strip()
