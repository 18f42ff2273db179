import dataclasses
import inspect

import pytest

from tests.growth import growth
from torchtune_lite import catalog
from torchtune_lite.config.text import document
from torchtune_lite.redaction import is_secret, redact

WANDB = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "value-of-the-variable")
    monkeypatch.setenv("MY_PASSWORD", "short")


SECRET = """
hf_token token HF_TOKEN HUGGING_FACE_HUB_TOKEN AWS_SESSION_TOKEN access_token auth_token accessToken authtoken ID_TOKEN
API_KEY api_key apikey apiKey wandb-api-key WANDB_API_KEY x-api-key OPENAI_API_KEY OPENAI_API_KEY_2 OPENAI_KEY
openai_key SECRET_KEY secret_key DJANGO_SECRET_KEY PRIVATE_KEY private_key SSH_PRIVATE_KEY privateKey AZURE_STORAGE_KEY
account_key aws_secret_access_key AWS_SECRET_ACCESS_KEY ENCRYPTION_KEY SIGNING_KEY MASTER_KEY STRIPE_KEY
DEPLOY_KEY AZURE_OPENAI_KEY
password passwd PASSWORD PGPASSWORD DB_PASSWORD MYSQL_ROOT_PASSWORD db_password dbPassword SMTP_PASS DB_PASS db_pass
MYSQL_PWD db_pwd passphrase SSH_PASSPHRASE passcode
secret SECRET CLIENT_SECRET client_secret clientSecret secrets APP_SECRET credentials GOOGLE_APPLICATION_CREDENTIALS
GITHUB_PAT gitlab_pat AZURE_DEVOPS_PAT
DATABASE_URL database_url REDIS_URL MONGODB_URI SQLALCHEMY_URI CLOUDAMQP_AMQP_URL SLACK_WEBHOOK_URL
SENTRY_DSN POSTGRES_DSN dsn CONNECTION_STRING AZURE_STORAGE_CONNECTION_STRING connection_string conn_str
authorization Authorization auth_header AUTH_HEADER HTTP_AUTH cookie SESSION_COOKIE
"""
PLAIN = """
tokenizer tokens num_tokens max_new_tokens tokens_per_second label_tokens_per_second token_ids token_id new_tokens
pad_token bos_token eos_token unk_token cls_token sep_token mask_token special_token stop_token image_token new_token
add_bos_token add_eos_token begin_of_text_token end_of_turn_token first_token pad_token_id padding_token audio_token
key keys role_key content_key sort_key primary_key public_key PUBLIC_KEY PRIMARY_KEY column_key KEY keyboard monkey
keep_last_n_checkpoints secretary secret_name password_file password_hint credentials_path api_key_name bypass pass
pass_rate backward_pass compass PWD OLDPWD pwd cwd path PATH pattern patience pat PATCH dispatch author authors auths
url base_url URL source_url uri string str docstring header headers column_header design signature sign
HOME USER LANG TERM SSH_AUTH_SOCK CUDA_VISIBLE_DEVICES HF_HOME OMP_NUM_THREADS PYTHONPATH VIRTUAL_ENV
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_names_of_secrets(name):
    assert is_secret(name)
    assert redact({name: "value"}) == {name: "***"}
    for text in (f"{name}=value", f"{name} = 'a value'", f'"{name}": "a value"', f"--{name}=value", f"x&{name}=value"):
        assert "value" not in redact(text), text


@pytest.mark.parametrize("name", PLAIN.split())
def test_names_of_what_is_no_secret(name):
    assert not is_secret(name)
    assert redact({name: "value", "text": f"{name}=value"}) == {name: "value", "text": f"{name}=value"}


def test_every_key_of_our_configs_and_components_stays_readable():
    from torchtune_lite import config
    from torchtune_lite.config.registry import offered as registry

    names = {
        name
        for module, offered in registry.COMPONENTS.items()
        for component in offered
        for name in inspect.signature(config.find(f"{module}.{component}")).parameters
    }
    for recipe in catalog.recipes():
        names |= {field.name for field in dataclasses.fields(config.settings_of(recipe.path))}
    for path in catalog.configs().values():
        names |= {part for key in document.keys(document.read(path).values) for part in key.split(".")}
    assert len(names) > 150
    assert [name for name in names if is_secret(name)] == []


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
        (r'text "{\"api_key\": \"s3cret\"}"', r'text "{\"api_key\": \"***"}"'),
        ("password='two words', n=1", "password='***', n=1"),
        ("cannot reach postgres://me:s3cr@t@db.example/rows", "cannot reach postgres://***@db.example/rows"),
        ("https://:s3cret@example.org/a", "https://***@example.org/a"),
        ("Authorization: Bearer abc.def-123", "Authorization: ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': '***'}"),
        ("sent Bearer abcdefgh12345678", "sent Bearer ***"),
        ("https://x.blob.example/a?sv=1&sig=a%2Fb%3D&se=2", "https://x.blob.example/a?sv=1&sig=***&se=2"),
        ("sk-proj-abcdefghij0123456789", "***"),
        ("key sk-ant-api03-abcdefghij0123456789_-x.", "key ***."),
        ("ghp_0123456789abcdefghijklmnopqrstuvwxyz", "***"),
        ("github_pat_0123456789abcdefghijkl_ABC", "***"),
        ("glpat-0123456789abcdefghij", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("xoxb-0123456789-abcdef", "***"),
        ("AIzaSyA0123456789abcdefghijklmnopqrstuv", "***"),
        ("npm_0123456789abcdefghijklmnopqrstuvwxyz", "***"),
        ("sk_live_0123456789abcdef", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r", "***"),
        ("x -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY----- y", "x *** y"),
        ("-----BEGIN PRIVATE KEY----- MIIE cut off", "***"),
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
        "sk-learn-like-names-of-folders",
        "task-0123456789-abcdefghij-0123456789",
        "git@github.com:org/name and http://host:8080/path@2",
        "Bearer of news",
        "unknown token: 'abc'",
        "https://example.org/a?signature=x",
    ],
)
def test_a_path_a_revision_and_plain_words_stay(text):
    assert redact(text) == text


def test_what_stands_below_a_secret_key_is_blanked_at_any_depth():
    assert redact({"credentials": {"user": "me", "keys": ["a", 1, None]}}) == {
        "credentials": {"user": "***", "keys": ["***", "***", None]}
    }


def test_of_two_variables_the_longer_value_is_blanked_first(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "0123456789")
    monkeypatch.setenv("B_TOKEN", "0123456789-and-more")
    assert redact("got 0123456789-and-more") == "got ***"


PIECES = [
    "a",
    " ",
    "=",
    "'",
    '"',
    "\n",
    "_",
    "a ",
    "a=",
    "a='",
    "token=",
    "://a:",
    "sk-",
    "eyJa.",
    "-----BEGIN PRIVATE KEY-----",
]


@pytest.mark.parametrize("piece", PIECES)
def test_redaction_costs_what_the_text_is_long(piece):
    assert growth(redact, piece) < 30
    assert growth(is_secret, piece) < 30
