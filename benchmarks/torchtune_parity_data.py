"""Compare tokens and labels with torchtune's, token for token, over builders, templates, masks and truncation.

    python benchmarks/torchtune_parity_data.py --peer PYTHON tokenizer.model [--instruct qa.jsonl]

PYTHON is an interpreter with torchtune 0.6 and a torchao it imports with (0.14 to 0.17). `--instruct` adds a file with
the columns `question` and `answer` to the rows written here. Prints one line for each builder and exits with 1 if a
sample differs.
"""

import argparse
import importlib
import itertools
import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ALPACA = [
    {"instruction": "Name three colours.", "input": "", "output": "Red, green and blue."},
    {"instruction": "Translate to French. ", "input": " Good morning,\nworld!", "output": "  Bonjour,\n\tle monde ! "},
    {"instruction": "台北市 🙂 {braces}", "input": "x", "output": "中正區\n"},
]
CHAT = [
    ("system", "Be brief. "),
    ("user", "Hello, who are you?"),
    ("assistant", "A model.\nAsk me "),
    ("user", " And what is 2 + 2?\n"),
    ("assistant", "4"),
]
CHATS = [CHAT, CHAT[1:], CHAT[:3], CHAT[1:4]]  # the last one ends with a question
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
ROWS = {
    "alpaca": ALPACA,
    "instruct": [{"question": row["instruction"], "answer": row["output"]} for row in ALPACA],
    "openai": [{"turns": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS],
    "sharegpt": [{"turns": [{"from": SHAREGPT[role], "value": text} for role, text in chat]} for chat in CHATS],
    "text": [{"text": text} for text in ("Once upon a time, a girl.", " Spaces  inside and at the end  ", "x")],
}
TEMPLATES = (None, "torchtune.models.llama2.Llama2ChatTemplate", {"user": ["Q: ", "\nA: "], "assistant": ["", " ###"]})
LENGTHS = (None, 24, 60)


def datasets(files: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """List dataset builders with their arguments."""
    found = []
    for train_on_input in (True, False):
        found.append(("alpaca_dataset", {"data_files": files["alpaca"], "train_on_input": train_on_input}))
        for prompt in (None, "Answer in rhyme."):
            shared = {"train_on_input": train_on_input, "new_system_prompt": prompt}
            columns = {"column_map": {"input": "question", "output": "answer"}, "split": "train[-5%:]"}
            found += [
                ("instruct_dataset", {"data_files": files[k], **columns, **shared}) for k in files if "instruct" in k
            ]
            for style in ("openai", "sharegpt"):
                form = {"conversation_style": style, "conversation_column": "turns"}
                found.append(("chat_dataset", {"data_files": files[style], **form, **shared}))
    for add_eos in (True, False):
        found.append(("text_completion_dataset", {"data_files": files["text"], "add_eos": add_eos}))
    return found


def samples(library: str, tokenizer: str, files: dict[str, str]) -> list[tuple[str, list]]:
    """Return each case's builder and its samples as [tokens, labels shifted by one], in one of the two libraries."""
    builders = importlib.import_module(f"{library}.datasets")
    make_tokenizer = importlib.import_module(f"{library}.models.llama2").llama2_tokenizer
    found, cut = [], {"add_eos_when_cut": True} if library == "torchtune_lite" else {}
    for template, length, (builder, args) in itertools.product(TEMPLATES, LENGTHS, datasets(files)):
        built = make_tokenizer(tokenizer, max_seq_len=length, prompt_template=template, **cut)
        try:
            pairs = [
                (sample["tokens"], sample["labels"])
                for sample in getattr(builders, builder)(built, source="json", **args)
            ]
        except ValueError as error:  # torchtune trains on samples that are all masked
            pairs = "none in the loss" if "none of the" in str(error) else str(error)
        else:
            pairs = [[tokens, list(map(int, labels))] for tokens, labels in pairs]
            if library == "torchtune":
                pairs = [[tokens, labels[1:] + [-100]] for tokens, labels in pairs]
                if all(label == -100 for _, labels in pairs for label in labels):
                    pairs = "none in the loss"
        found.append((builder, pairs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer", help="a SentencePiece model")
    parser.add_argument("--peer", help="Python interpreter with torchtune")
    parser.add_argument("--instruct", help="a .jsonl file with the columns question and answer")
    parser.add_argument("--dump", help=argparse.SUPPRESS)  # in the peer's process: the files as JSON, samples to stdout
    args = parser.parse_args()
    if args.dump:
        print(json.dumps(samples("torchtune", args.tokenizer, json.loads(args.dump))))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, f"{name}.jsonl")) for name in ROWS}
        for name, rows in ROWS.items():
            Path(files[name]).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        if args.instruct:
            files["instruct, given file"] = args.instruct
        peer = subprocess.run(
            [args.peer, __file__, args.tokenizer, "--dump", json.dumps(files)], stdout=subprocess.PIPE, check=True
        )
        logging.getLogger("torchtune_lite").setLevel("ERROR")
        theirs, ours = json.loads(peer.stdout), json.loads(json.dumps(samples("torchtune_lite", args.tokenizer, files)))
    cases, equal, compared = Counter(), Counter(), Counter()
    for (builder, their_samples), (_, our_samples) in zip(theirs, ours, strict=True):
        cases[builder] += 1
        equal[builder] += our_samples == their_samples
        compared[builder] += len(our_samples) if isinstance(our_samples, list) else 0
    for builder in cases:
        print(f"{builder:<24} {equal[builder]:>3} of {cases[builder]:>3} equal, {compared[builder]:>6,} samples")
    sys.exit(equal != cases)


if __name__ == "__main__":
    main()
