"""Train the embedded model's SentencePiece tokenizer (`tokenizer.model`, Llama's special tokens: unk 0, BOS 1, EOS 2).

    python -m torchtune_lite.assets.make_tokenizer --out torchtune_lite/assets/base

Every Chinese character is a piece of its own, so that copying a span is copying its pieces; English words merge as
usual, JSON's joints and the tags of Llama 2's template are one piece each, and anything else falls back to bytes.
"""

import argparse
import io
from pathlib import Path
from random import Random

import sentencepiece

from torchtune_lite.assets.corpus import ASCII, DICTIONARY, HAN, question, text

JOINTS = ["[INST]", "[/INST]", '{"', '":▁"', '",▁"', '"}']  # ▁ is SentencePiece's space
VOCABULARY = 1152


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = Random(args.seed)
    sample = "".join("".join(question(rng)) + text(rng) for _ in range(10_000))
    characters = sorted(set(sample) | set(HAN) | set(ASCII) | {chr(code) for code in range(33, 127)})
    # English words and single characters only: Chinese characters never stand side by side here, so they never merge.
    lines = [f'"{word}" {word}' for word in DICTIONARY] * 10 + characters
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        user_defined_symbols=JOINTS,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tokenizer.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
