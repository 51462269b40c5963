"""A disk that computes the possible states after a power cut at any of its effects.

All effects are applied to real files, and a model of synced data is kept. Three states are possible after a cut:

lost  only synced data: content by `sync_file`, names by `sync_folder`
torn  every name, but only synced content: the result of a journal of metadata
kept  all data, as if each effect had reached the disk at once
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

State = dict[str, bytes | str | None]
"""Content of a disk: files by path with their content, links with their target, folders with None."""

OUTCOMES = ("lost", "torn", "kept")


class _File:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.synced = b""


class _Folder:
    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.synced: dict[str, _Node] = {}


_Node = _File | _Folder | str


class SimulatedDisk:
    """Effects on all paths below `root`. `cuts` are the different states possible after power cuts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.effects = 0
        self.cuts: list[State] = []
        self._top = _nodes(root)

    def after_cut(self, outcome: str) -> State:
        """Return the state after a power cut now."""
        return dict(_found(self._top, outcome))

    def make_folder(self, path: Path) -> None:
        path.mkdir()
        self._folder(path.parent).names[path.name] = _Folder()
        self._done()

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        content = b"".join(pieces)
        path.write_bytes(content)
        self._folder(path.parent).names[path.name] = _File(content)
        self._done()

    def link(self, path: Path, to: str) -> None:
        path.symlink_to(to)
        self._folder(path.parent).names[path.name] = to
        self._done()

    def sync_file(self, path: Path) -> None:
        file = self._folder(path.parent).names[path.name]
        file.synced = file.content
        self._done()

    def sync_folder(self, path: Path) -> None:
        folder = self._folder(path)
        folder.synced = dict(folder.names)
        self._done()

    def rename(self, path: Path, to: Path) -> None:
        path.rename(to)
        self._folder(to.parent).names[to.name] = self._folder(path.parent).names.pop(path.name)
        self._done()

    def remove_file(self, path: Path) -> None:
        path.unlink()
        del self._folder(path.parent).names[path.name]
        self._done()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()
        del self._folder(path.parent).names[path.name]
        self._done()

    def _done(self) -> None:
        self.effects += 1
        for outcome in OUTCOMES:
            state = self.after_cut(outcome)
            if state not in self.cuts:
                self.cuts.append(state)

    def _folder(self, path: Path) -> _Folder:
        node = self._top
        for name in path.relative_to(self.root).parts:
            node = node.names[name]
        return node


def read_state(root: Path) -> State:
    """Return the content of the real disk below a folder."""
    state: State = {}
    for path in sorted(root.rglob("*")):
        here = str(path.relative_to(root))
        state[here] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return state


def write_state(root: Path, state: State) -> None:
    """Replace the content of the real disk below a folder."""
    for path in root.iterdir():
        shutil.rmtree(path)
    for here, each in state.items():
        match each:
            case None:
                (root / here).mkdir()
            case str():
                (root / here).symlink_to(each)
            case bytes():
                (root / here).write_bytes(each)


def _nodes(folder: Path) -> _Folder:
    """Return the initial nodes, all of them synced."""
    node = _Folder()
    for path in folder.iterdir():
        if path.is_symlink():
            node.names[path.name] = str(path.readlink())
        elif path.is_dir():
            node.names[path.name] = _nodes(path)
        else:
            file = node.names[path.name] = _File(path.read_bytes())
            file.synced = file.content
    node.synced = dict(node.names)
    return node


def _found(folder: _Folder, outcome: str, prefix: str = "") -> Iterator[tuple[str, bytes | str | None]]:
    """Yield the content of a folder after a cut."""
    for name, each in sorted((folder.synced if outcome == "lost" else folder.names).items()):
        match each:
            case _Folder():
                yield prefix + name, None
                yield from _found(each, outcome, f"{prefix}{name}/")
            case _File():
                yield prefix + name, each.content if outcome == "kept" else each.synced
            case _:
                yield prefix + name, each
