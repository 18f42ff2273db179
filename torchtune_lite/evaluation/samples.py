"""The answers of a data set's samples, given by the model that is being trained, beside those that are expected."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torchtune_lite.data import CROSS_ENTROPY_IGNORE_IDX, PackedDataset
from torchtune_lite.errors import ConfigError
from torchtune_lite.evaluation.metrics import METRICS
from torchtune_lite.evaluation.texts import generate_texts
from torchtune_lite.generation import Sampling
from torchtune_lite.modules import TransformerDecoder

SCORED = ("exact_match", "f1")


class Sample(NamedTuple):
    """The tokens of a sample up to its last answer, and those of the answer with its end."""

    prompt: list[int]
    expected: list[int]


class SampleQuestions:
    """The last answers of the samples of data sets, by name; `batch_size` of them are given together, greedily.

    An answer is as long as the longest that is expected, at most. Raise ConfigError for samples without a question: of
    texts, packed ones, and those with a loss on all their tokens.
    """

    def __init__(self, sets: Mapping[str, Any], tokenizer: Any, batch_size: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.samples = [(name, _sample(each, i)) for name, each in sets.items() for i in range(len(each))]

    def __len__(self) -> int:
        return len(self.samples)

    def ask(self, model: TransformerDecoder) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the scores, and of each sample what was asked, expected and answered.

        The scores are `eval_exact_match` and `eval_f1`, the means over all samples, and `eval_f1/NAME` and the like of
        several data sets.
        """
        prompts = [sample.prompt for _, sample in self.samples]
        sampling = Sampling(max_new_tokens=max(len(sample.expected) for _, sample in self.samples))
        samplings = [sampling] * len(prompts)
        texts = dict(generate_texts(model, self.tokenizer, prompts, samplings, batch_size=self.batch_size))
        answers = []
        for number, (name, sample) in enumerate(self.samples):
            expected, answer = self.tokenizer.decode(sample.expected).strip(), texts[number].strip()
            scores = {metric: METRICS[metric](answer, expected) for metric in SCORED}
            row = {"dataset": name} if name else {}
            row |= {"prompt": self.tokenizer.decode(sample.prompt), "expected": expected, "answer": answer}
            answers.append(row | scores)
        return _means(answers), answers


def _means(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(row["dataset"] for row in answers if "dataset" in row)
    groups = {"": answers} | {f"/{name}": [row for row in answers if row.get("dataset") == name] for name in names}
    return {
        f"eval_{metric}{suffix}": sum(row[metric] for row in rows) / len(rows)
        for suffix, rows in groups.items()
        for metric in SCORED
    }


def _sample(dataset: Any, index: int) -> Sample:
    """Find the last tokens of a sample that have a loss: its answer."""
    if isinstance(dataset, PackedDataset):
        raise ConfigError("dataset_eval: packed samples have no question of their own; set dataset_eval.packed=False")
    sample = dataset[index]
    tokens, labels = (list(sample[name]) for name in ("tokens", "labels"))
    has_loss = [label != CROSS_ENTROPY_IGNORE_IDX for label in labels]
    last = len(labels) - 1 - has_loss[::-1].index(True) if any(has_loss) else 0
    first = last
    while first > 0 and has_loss[first - 1]:
        first -= 1
    if first == 0:
        raise ConfigError(
            f"dataset_eval: sample {index} has no question before its answer; give conversations, with "
            "train_on_input=False"
        )
    return Sample(tokens[: first + 1], labels[first : last + 1])
