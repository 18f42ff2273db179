import inspect

import pytest

from torchtune_lite import config, datasets
from torchtune_lite.config.schema.components import check
from torchtune_lite.config.text.document import Document
from torchtune_lite.data import ColumnText, Rows, TextTokens
from torchtune_lite.datasets.builder import dataset_builder
from torchtune_lite.errors import ConfigError

SHARED = ["data_files", "field", "name", "split", "packed", "streaming", "filter_fn", "on_bad_sample", "on_long_sample"]
NAMES = [name for name in datasets.__all__ if name.endswith("_dataset")]
ELSEWHERE = {
    "alpaca_dataset": "tatsu-lab/alpaca",
    "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
    "cnn_dailymail_articles_dataset": "ccdv/cnn_dailymail",
    "grammar_dataset": "liweili/c4_200m",
    "hh_rlhf_helpful_dataset": "RLHFlow/HH-RLHF-Helpful-standard",
    "samsum_dataset": "Samsung/samsum",
    "slimorca_dataset": "Open-Orca/SlimOrca-Dedup",
    "stack_exchange_paired_dataset": "lvwerra/stack-exchange-paired",
    "wikitext_dataset": "EleutherAI/wikitext_document_level",
}


@dataset_builder(source="rows.jsonl")
def letters_dataset(tokenizer, letter: str = "a", *, add_eos: bool = True):
    """Build a test's data set."""
    return ColumnText(letter), TextTokens(tokenizer, add_eos)


@pytest.mark.parametrize("name", NAMES)
def test_every_builder_has_the_shared_arguments_and_its_source(name):
    parameters = inspect.signature(getattr(datasets, name)).parameters
    assert list(parameters)[:2] == ["tokenizer", "source"]
    assert [each for each in parameters if each in SHARED] == SHARED
    default = parameters["source"].default
    assert default is inspect.Parameter.empty if name not in ELSEWHERE else default == ELSEWHERE[name]


def test_a_builder_takes_its_own_arguments_and_the_shared_ones(tokenizer, jsonl, written, folder):
    jsonl([{"a": "x", "b": "y"}, {"a": "z", "b": "y"}])
    assert [tokens for tokens, _ in written(letters_dataset(tokenizer))] == ["⟨▁x⟩", "⟨▁z⟩"]
    dataset = letters_dataset(tokenizer, "rows.jsonl", "b", add_eos=False, split="train[1:]")
    assert written(dataset) == [("⟨▁y", "▁y·")] and dataset.where(0) == "rows.jsonl:2"
    assert letters_dataset.__name__ == "letters_dataset" and letters_dataset.__doc__.startswith("Build a test")
    with pytest.raises(TypeError, match="unexpected keyword argument 'spilt'"):
        letters_dataset(tokenizer, spilt="train")


def test_a_config_is_checked_against_all_of_them(document):
    def problems(name, **values):
        node = {"_component_": f"torchtune.datasets.{name}", **values}
        return " ".join(check(node, ("dataset",), document, ["tokenizer"]))

    assert problems("samsum_dataset", packed=False, split="train", column_map={"input": "a"}) == ""
    assert "needs source, conversation_column" in problems("chat_dataset", conversation_style="openai")
    assert "has no argument 'spilt'; did you mean 'split'?" in problems("grammar_dataset", spilt="train")
    assert "expects error or skip for 'on_bad_sample'" in problems("wikitext_dataset", on_bad_sample="drop")
    assert "expects train_on_all or train_on" in problems("preference_dataset", source="x", masking_strategy="last")
    assert "cannot take 'message_transform'" in problems("sft_dataset", source="x", message_transform="torch.nn.gone")


@pytest.fixture
def document():
    return Document("x.yaml", {}, {(): "x.yaml:1"})


def test_pairs_are_not_packed(tokenizer):
    with pytest.raises(ConfigError, match="packed=True: pairs cannot be packed"):
        config.find("torchtune.datasets.preference_dataset")(tokenizer, source="no/such.jsonl", packed=True)


def test_packed_samples_are_those_of_the_data_set(tokenizer, jsonl, written):
    source = jsonl([{"input": "ab", "output": "c" * n} for n in (1, 2, 40)])
    tokenizer.max_seq_len = 20
    plain, packed = (
        config.find("torchtune.datasets.instruct_dataset")(tokenizer, source, packed=each) for each in (False, True)
    )
    assert packed.pack_len == 20 and written(packed) == written(plain)
    assert list(packed.lengths) == [len(plain[i]["tokens"]) for i in range(3)]
    tokenizer.max_seq_len = None
    with pytest.raises(ConfigError, match="packed=True needs tokenizer.max_seq_len"):
        config.find("torchtune.datasets.instruct_dataset")(tokenizer, source, packed=True)


def test_a_long_text_is_split_over_packs_or_cut(tokenizer, jsonl, written):
    tokenizer.max_seq_len = 6
    source = jsonl([{"text": "abcdefgh"}])
    build = config.find("torchtune.datasets.text_completion_dataset")
    assert [tokens for tokens, _ in written(build(tokenizer, source, packed=True))] == ["⟨▁abcd", "efgh⟩"]
    cut = build(tokenizer, source, packed=True, split_across_pack=False)
    assert (
        [tokens for tokens, _ in written(cut)] == ["⟨▁abc"] == [each for each, _ in written(build(tokenizer, source))]
    )


def test_hub_data_sets_are_asked_for_as_torchtune_asks_for_them(tokenizer, monkeypatch):
    asked = {}
    texts = {"input": "a", "output": "b", "dialogue": "c", "summary": "d", "page": "e", "article": "f"}
    turns = [{"from": "human", "value": "g"}, {"from": "gpt", "value": "h"}]
    chosen = [{"role": "user", "content": "i"}, {"role": "assistant", "content": "j"}]
    pairs = {"chosen": chosen, "rejected": chosen, "question": "k", "response_j": "l", "response_k": "m"}

    def hub_rows(source, options, split):
        asked[source] = {key: value for key, value in options.items() if value is not None}
        return Rows(source, [{**texts, "instruction": "x", "conversations": turns, **pairs}], str)

    monkeypatch.setattr("torchtune_lite.data.readers.sources._hub_rows", hub_rows)
    for name in ELSEWHERE:
        assert len(getattr(datasets, name)(tokenizer)) == 1
    assert set(asked) == set(ELSEWHERE.values())
    assert {source: options for source, options in asked.items() if options} == {
        "ccdv/cnn_dailymail": {"name": "3.0.0"},
        "EleutherAI/wikitext_document_level": {"name": "wikitext-103-v1"},
        "lvwerra/stack-exchange-paired": {"data_files": "data/rl/*.parquet"},
    }


def test_a_packed_data_set_reads_each_row_once(tokenizer, jsonl, folder):
    read = []

    class Noted(ColumnText):
        def __call__(self, row):
            read.append(row["a"])
            return super().__call__(row)

    @dataset_builder()
    def noted_dataset(tokenizer):
        return Noted("a"), TextTokens(tokenizer)

    jsonl([{"a": letter * 3} for letter in "abcdefgh"])
    tokenizer.max_seq_len = 100
    data = noted_dataset(tokenizer, "rows.jsonl", packed=True)
    assert [len(data[i]["tokens"]) > 3 for i in range(len(data))] == [True] * 8
    assert read == [letter * 3 for letter in "abcdefgh"]
