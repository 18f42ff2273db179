"""Upload a run's checkpoint to a repository of the Hugging Face hub, with a model card.

  tune upload runs/x org/name --dry-run             what would be sent, and the card
  tune upload runs/x org/name
  tune upload runs/x org/name-lora --adapter --base org/base

Of a run the best checkpoint by validation loss is sent, or else the newest; one of them (runs/x/epoch_0) can be named
itself. Its merged model goes, or the adapter alone, after each file has been compared with the checkpoint's manifest;
the optimizer's state stays. The repository is private, and made if need be; the token is HF_TOKEN of the environment.
All files come in one commit, so that the repository has the whole model or what it had before. Run again, it goes on
where it stopped.
"""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from torchtune_lite.errors import CheckpointError, ConfigError, TuneError, warn
from torchtune_lite.utils import REPOSITORY, counted, get_logger


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune upload`."""
    parser.add_argument("path", type=Path, metavar="RUN", help="folder of a run or of one of its checkpoints")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--adapter", action="store_true", help="send the adapter alone, in PEFT's layout")
    parser.add_argument("--base", metavar="OWNER/NAME", help="the base model's repository, where the run has a folder")
    parser.add_argument("--public", action="store_true", help="let everybody see the repository (default: private)")
    parser.add_argument("--overwrite-card", action="store_true", help="replace the README.md that the repository has")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def main(args: Namespace) -> None:
    """Check the folder, then send it, or with --dry-run print what would be sent."""
    for repo in filter(None, (args.repo, args.base)):
        if not REPOSITORY.fullmatch(repo):
            raise ConfigError(f"'{repo}' is not a repository; expected OWNER/NAME, such as my-name/my-model")
    get_logger()
    # by its name: what reads checkpoints stands above this package, and imports torch
    hub = import_module("torchtune_lite.hub")
    contents = hub.collect(args.path, args.repo, adapter=args.adapter, base=args.base)
    if not contents.is_base_known:
        warn("the run does not know its base model's repository; --base OWNER/NAME names it in the card")
    if args.dry_run:
        show(args, contents, hub.CARD)
    else:
        upload(args, contents, hub)


def show(args: Namespace, contents: Any, card: str) -> None:
    """Print the files with their sizes, and the card."""
    print(f"would send to {args.repo}, {'public' if args.public else 'private'}, of {contents.folder}:")
    for name in contents.files:
        print(f"  {contents.size(name):>16,}  {name}")
    print(f"{summary(contents)}; {card}:\n")
    file = contents.files[card]
    print(file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8", errors="replace"), end="")


def summary(contents: Any) -> str:
    """Return how many files there are, and how many bytes."""
    size = sum(map(contents.size, contents.files))
    return f"{counted(len(contents.files), 'file')}, {size / 1e6:,.1f} MB"


def upload(args: Namespace, contents: Any, hub: Any) -> None:
    """Make the repository if need be, and commit what it has not got."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ConfigError("set HF_TOKEN in the environment to a token that may write to the repository")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("uploads go through huggingface_hub: pip install 'torchtune_lite[hf]'") from error
    huggingface_hub.logging.set_verbosity_error()
    api = huggingface_hub.HfApi(token=token)
    try:
        before = existing(api, args.repo, args.public)
        there = [file.rfilename for file in before.siblings]
        stale, files = contents.replaced(there), dict(contents.files)
        if hub.CARD in there and not args.overwrite_card:
            del files[hub.CARD]
            print(f"{args.repo} has a {hub.CARD}, which stays; --overwrite-card replaces it")
        operations = [
            *(huggingface_hub.CommitOperationAdd(name, file) for name, file in files.items()),
            *(huggingface_hub.CommitOperationDelete(name) for name in stale),
        ]
        commit = api.create_commit(args.repo, operations, commit_message=f"Upload {contents.folder.name}")
    except TuneError:
        raise
    except Exception as error:  # huggingface_hub's, its HTTP library's, the system's
        raise CheckpointError(explain(args.repo, error)) from error
    if stale:
        print(f"removed, as weights of an earlier upload: {', '.join(stale)}")
    if commit.oid == before.sha:
        print(f"{args.repo} has all of it already: {summary(contents)}")
    else:
        print(f"{api.endpoint}/{args.repo} has {contents.folder} ({summary(contents)}; {commit.oid[:12]})")


def existing(api: Any, repo: str, public: bool) -> Any:
    """Return what the hub knows of a repository, which is made where there is none.

    ConfigError for one that everybody sees, unless that is meant.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=not public, exist_ok=True)
        info = api.model_info(repo)
    if not info.private and not public:
        raise ConfigError(f"{repo} exists and is public; add --public to send to it, or choose another name")
    return info


def explain(repo: str, error: BaseException) -> str:
    """Say in one line why an upload failed and what to do; without the parameters of an address, which may sign it."""
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return f"HF_TOKEN may not write to {repo}; make a token with the right to, on the page of your settings"
    lines = [line.strip(" .:") for each in (error, error.__cause__) if each for line in str(each).splitlines()]
    reason = re.sub(r"\?[^\s']+", "", ": ".join(filter(None, dict.fromkeys(lines)))) or type(error).__name__
    return f"cannot upload to {repo}: {reason}; run the same command again to go on where it stopped"
