"""Download a model repository of the Hugging Face hub into a folder.

  tune download meta-llama/Llama-2-7b-hf --output-dir /models/llama2_7b
  tune download org/model --include '*.json' 'tokenizer*'

Run again, it goes on where it stopped. A gated or private repository needs HF_TOKEN in the environment. Where a
repository holds its weights several times, only the safetensors files are taken, unless --include says otherwise.
"""

import hashlib
import os
import shutil
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.utils import REPOSITORY, counted

OTHER_FORMATS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.onnx*", "*.gguf", "*.tflite", "original/*")


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune download`."""
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--output-dir", type=Path, metavar="FOLDER", help="where to put it (default: /tmp/NAME)")
    parser.add_argument("--include", nargs="+", metavar="PATTERN", help="take these files only")
    parser.add_argument(
        "--ignore", "--ignore-patterns", nargs="+", default=[], metavar="PATTERN", help="leave these out"
    )
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--hf-token", help=SUPPRESS)


def main(args: Namespace) -> None:
    """Download the files that are not there yet, checks them and prints where they lie."""
    if args.hf_token is not None:
        raise ConfigError("a token on the command line is seen by every user of the machine; set HF_TOKEN instead")
    if not REPOSITORY.fullmatch(args.repo):
        raise ConfigError(f"'{args.repo}' is not a repository; expected OWNER/NAME, such as meta-llama/Llama-2-7b-hf")
    folder = args.output_dir.expanduser() if args.output_dir else Path("/tmp") / args.repo.rpartition("/")[2]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("downloads come through huggingface_hub: pip install 'torchtune_lite[hf]'") from error

    token = os.environ.get("HF_TOKEN") or False  # False: not the token that a login left in the home folder either
    try:
        info = huggingface_hub.HfApi(token=token).model_info(args.repo, revision=args.revision, files_metadata=True)
        files = {each.rfilename: each for each in info.siblings}
        chosen = {name: files[name] for name in choose(args.repo, files, args.include, args.ignore)}
        missing = {name: file for name, file in chosen.items() if not is_whole(folder / name, file)}
        check_space(folder, sum(file.size or 0 for file in missing.values()))
        for name, file in missing.items():
            fetch(huggingface_hub.hf_hub_url(args.repo, name, revision=info.sha), folder, file, token)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # huggingface_hub's, its HTTP library's, the system's
        raise CheckpointError(explain(args.repo, args.revision, error)) from error
    if left_out := sorted(set(files) - set(chosen)):
        print(f"left out: {', '.join(left_out)}")
    print(f"{folder} has {counted(len(chosen), 'file')} of {args.repo} ({info.sha[:12]})")


def fetch(url: str, folder: Path, file: Any, token: str | bool) -> None:
    """Download a file under another name, on from where the last attempt stopped, and renames it when it is whole.

    huggingface_hub starts each file afresh since its version 2, so only its transfer is used. The partial file's name
    stands for the content, so that parts of two versions do not mix.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    found = get_hf_file_metadata(url, token=token)
    own_host = urlsplit(found.location).netloc == urlsplit(url).netloc  # the token is for the hub, not for its storage
    target = folder / file.rfilename
    content = hashlib.sha256(f"{file.rfilename} {found.etag}".encode()).hexdigest()[:16]
    partial = target.with_name(f"{target.name}.{content}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as out:
        headers = build_hf_headers(token=token) if own_host else {}
        http_get(found.location, out, resume_size=out.tell(), headers=headers, expected_size=found.size)
    if not is_whole(partial, file, thorough=True):
        size = partial.stat().st_size
        partial.unlink()
        raise CheckpointError(
            f"{target}: the download ({counted(size, 'byte')}) is not the hub's file; run the command again"
        )
    partial.replace(target)


def is_whole(path: Path, file: Any, thorough: bool = False) -> bool:
    """Return whether a file is what the hub lists: by its size, and small ones, or all if `thorough`, by their hash."""
    if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
        return False
    if file.lfs is not None:
        return not thorough or _hash(path, hashlib.sha256()) == file.lfs["sha256"]
    header = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # as git hashes it
    return file.blob_id is None or _hash(path, header) == file.blob_id


def _hash(path: Path, start: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            start.update(block)
    return start.hexdigest()


def choose(repo: str, names: Iterable[str], include: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    """Return the files to take; raise where there is none, or one that would lie outside the folder."""
    names = sorted(names)
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise CheckpointError(
                f"{repo} has a file named {name!r}, which would lie outside the folder; not downloaded"
            )
    if include is None and any(name.endswith(".safetensors") and "/" not in name for name in names):
        ignore = [*ignore, *OTHER_FORMATS]
    chosen = [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in include or ["*"])
        and not any(fnmatch(name, pattern) for pattern in ignore)
    ]
    if not chosen:
        raise ConfigError(f"no file of {repo} matches --include and --ignore (it has: {', '.join(names)})")
    return chosen


def check_space(folder: Path, needed: int) -> None:
    """Raise ConfigError where the disk cannot hold what is needed, in bytes."""
    existing = next(each for each in (folder, *folder.parents, Path(".")) if each.exists())
    if not existing.is_dir():
        raise ConfigError(f"--output-dir {folder}: {existing} is a file")
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(f"{folder} has {free / 2**30:.1f} GiB of free space, the download needs {needed / 2**30:.1f}")


def explain(repo: str, revision: str, error: Any) -> str:
    """Say in one line why a download failed and what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return f"{repo} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no model {repo}, or it is private and HF_TOKEN may not read it"
    if "RevisionNotFoundError" in kinds:
        return f"{repo} has no revision {revision}"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"cannot download {repo}: {reason}; run the same command again to go on where it stopped"
