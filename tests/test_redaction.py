import pytest

from torchtune_lite.redaction import is_secret, redact

WANDB = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "value-of-the-variable")
    monkeypatch.setenv("MY_PASSWORD", "short")


def test_names_of_secrets():
    secret = ("hf_token", "token", "API_KEY", "wandb-api-key", "apikey", "aws_secret_access_key", "passwd")
    assert [name for name in secret if not is_secret(name)] == []
    plain = ("tokenizer", "max_new_tokens", "pad_token", "special_token", "key", "keep_last_n_checkpoints", "secretary")
    assert [name for name in plain if is_secret(name)] == []


def test_a_config_keeps_all_but_its_secrets():
    config = {
        "tokenizer": {"path": "m", "pad_token": "<pad>", "max_seq_len": 9},
        "loggers": [{"api_key": "s3cret", "project": "p"}],
        "password": 12345,
        "hf_token": None,
        "use_auth_token": True,
        "lr": 1e-4,
    }
    assert redact(config) == config | {"loggers": [{"api_key": "***", "project": "p"}], "password": "***"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("login with hf_abcDEF0123456789abcDEF0123456789 failed", "login with *** failed"),
        (f"wandb: {WANDB}", "wandb: ***"),
        ("the server refused value-of-the-variable.", "the server refused ***."),
        ("override 'metric_logger.api_key=s3cret'", "override 'metric_logger.api_key=***'"),
        ("mapping {'hf_token': 's3cret', 'n': 1}", "mapping {'hf_token': '***', 'n': 1}"),
    ],
)
def test_a_text_keeps_all_but_its_secrets(text, left):
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        f"/cache/models--a--b/snapshots/{WANDB}/config.json",
        f"there is no revision {WANDB}",
        f"a/b@{WANDB}",
        "a short password",
        "'api_key': expected text, got null",
        "/models/hf_TinyLlama11BChatV10",
        "pad_token=0",
    ],
)
def test_a_path_a_revision_and_plain_words_stay(text):
    assert redact(text) == text
