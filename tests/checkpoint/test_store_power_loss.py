"""Power loss at any moment of three saves: unsynced changes may be gone, in any combination.

A process that is killed leaves its writes with the system; a power loss does not. So the disk is simulated: a run is
watched, and from what it has synced so far, images of the disk are built as a power loss could leave it (as Pillai et
al. do, "All File Systems Are Not Created Equal", OSDI 2014).
"""

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.checkpoint.little_run import check, check_next_run, run
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError

RUN = Path("runs/run")
WATCHED = ("make_folder", "sync_file", "sync_folder", "rename", "remove")
Image = dict[str, bytes | None]  # the content of each path; None: a folder


class Disk:
    """The synced state of the disk, `names` of each folder and `content` of files, and `pending` changes of names.

    Folders and files have numbers of their own, since the system uses inodes again.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root, self.new = root, count()
        self.names: dict[int, dict[str, int | None]] = {}
        self.content: dict[int, bytes] = {}
        self.pending: list[tuple[int, dict[str, int | None]]] = []
        self.sizes: dict[int, int] = {}  # of files
        self.seen: dict[int, dict[str, int]] = {}
        self.inodes: dict[int, int] = {}
        self.look()

    def look(self, at_once: bool = False) -> None:
        """Take note of changed names, one by one or `at_once`."""
        folders = [self.root, *filter(Path.is_dir, self.root.rglob("*"))]
        paths = [*folders, *filter(Path.is_file, self.root.rglob("*"))]
        known = self.inodes
        self.inodes = {(inode := path.stat().st_ino): known.get(inode, next(self.new)) for path in paths}
        self.sizes |= {self.number(path): path.stat().st_size for path in paths if path.is_file()}
        seen = {self.number(f): {path.name: self.number(path) for path in f.iterdir()} for f in folders}
        for folder, names in seen.items():
            old = self.seen.get(folder, {})
            change = {name: names.get(name) for name in {**old, **names} if old.get(name) != names.get(name)}
            changes = [change] if at_once else [{name: number} for name, number in change.items()]
            self.pending += [(folder, change) for change in changes if change]
        self.seen = seen

    def number(self, path: Path) -> int:
        return self.inodes[path.stat().st_ino]

    def sync_file(self, path: Path) -> None:
        self.content[self.number(path)] = path.read_bytes()

    def sync_folder(self, path: Path) -> None:
        mine = self.number(path)
        self.names[mine] = self.names_with(range(len(self.pending))).get(mine, {})
        self.pending = [(folder, change) for folder, change in self.pending if folder != mine]

    def names_with(self, kept) -> dict[int, dict[str, int | None]]:
        names = {folder: dict(entries) for folder, entries in self.names.items()}
        for folder, change in (self.pending[i] for i in sorted(kept)):
            names.setdefault(folder, {}).update(change)
        return names

    def images(self) -> Iterator[Image]:
        """Return the possible images: with all changes of names, none, each one alone, and all but one.

        Bytes that were not synced are zeros or missing.
        """
        every = set(range(len(self.pending)))
        for kept in [every, set(), *({i} for i in every), *(every - {i} for i in every)]:
            names = self.names_with(kept)
            for zeros in (True, False):
                yield dict(self.found(names, self.root, zeros))

    def found(self, names, root: Path, zeros: bool) -> Iterator[tuple[str, bytes | None]]:
        todo = [("", self.number(root))]
        while todo:
            path, folder = todo.pop()
            for name, number in names.get(folder, {}).items():
                if number in self.sizes:
                    yield path + name, self.content.get(number, bytes(self.sizes[number]) if zeros else b"")
                elif number is not None:
                    yield path + name, None
                    todo.append((f"{path}{name}/", number))


class PowerLoss:
    """Watches three saves and checks every image of every moment, optionally `without` the sync at one place.

    `places` are those that sync, `images` the folders that were checked.
    """

    def __init__(self, folder: Path, without: str | None = None) -> None:
        folder.mkdir()
        self.folder, self.without, self.disk = folder, without, Disk(folder / "disk")
        self.saved: list[int] = []
        self.places: set[str] = set()
        self.images: dict[tuple, Path] = {}
        with pytest.MonkeyPatch.context() as patch:
            for name in WATCHED:
                patch.setattr(disk, name, self.watch(name, getattr(disk, name)))
            run(self.disk.root / RUN, saved=self.saved.append)
            self.check()

    def watch(self, name: str, function: Callable) -> Callable:
        def call(*args: Path) -> None:
            self.disk.look()
            self.check()
            if name.startswith("sync"):
                code = sys._getframe(1)
                self.places.add(place := f"{Path(code.f_code.co_filename).stem}:{code.f_lineno}")
                if place != self.without:
                    getattr(self.disk, name)(*args)
                return
            if name == "remove" and args[0].exists():  # file by file
                for path in sorted([args[0], *args[0].rglob("*")], reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                    self.disk.look()
                    self.check()
            function(*args)
            self.disk.look(at_once=name == "rename")

        return call

    def check(self) -> None:
        for image in self.disk.images():
            key = (frozenset(image.items()), len(self.saved))
            if key not in self.images:
                folder = self.images[key] = self.folder / f"image_{len(self.images)}"
                folder.mkdir()
                for path, content in image.items():
                    (folder / path).mkdir() if content is None else (folder / path).write_bytes(content)
                check(folder / RUN, self.saved)


def test_a_power_loss_loses_nothing(tmp_path: Path):
    loss = PowerLoss(tmp_path / "run")
    assert len(loss.images) > 200
    for folder in list(loss.images.values())[::10]:
        check_next_run(folder / RUN)


def test_every_sync_is_needed(tmp_path: Path):
    """Negative control: with any one of them left out, there is an image in which something is lost."""
    places = PowerLoss(tmp_path / "run").places
    assert len(places) >= 7
    for place in places:
        with pytest.raises((AssertionError, CheckpointError)):
            PowerLoss(tmp_path / place, without=place)
            print(f"{place} is not needed")
