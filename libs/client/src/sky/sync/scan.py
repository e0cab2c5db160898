"""Walks a local directory: which files, directories and links go to the nodes. Reads ignore files, hashes nothing, sends nothing.

`.skyignore` at the top is the only source of rules when it is there; else every .gitignore on the way counts, with
.git/info/exclude and what the checkout around the directory says. `.git` stays behind unless the task asks for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from sky.sync.ignore import IgnoreRules
from skyloom_common.contracts.files import DIRECTORY, FILE, LINK
from skyloom_common.contracts.task.model import SyncSpec
from skyloom_common.core.chunks import Stamp, stamp_of
from skyloom_common.core.errors import InvalidRequest

SKYIGNORE = ".skyignore"
GITIGNORE = ".gitignore"


@dataclass(frozen=True)
class Found:
    """One thing to send. `stamp` is set for files, `target` for links. `path` is relative to the tree's root."""

    path: str
    kind: str
    mode: int = 0
    stamp: Stamp | None = None
    target: str = ""


@dataclass
class Scan:
    """What a walk brought, in tree order, and sentences for the user."""

    root: str
    is_file: bool = False
    found: list[Found] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def full_path(self, path: str) -> str:
        return self.root if self.is_file else f"{self.root}/{path}"


_Chain = tuple[tuple[IgnoreRules, str, int], ...]
"""Rules with what to put before a path and how much of it to cut off, strongest first."""


def scan(path: str, sync: SyncSpec | None = None) -> Scan:
    """Everything below `path` that the rules let through. A path that is a file is always taken, whatever the rules say."""
    given = os.path.expanduser(path)
    try:
        status = os.stat(given)
    except OSError as error:
        raise InvalidRequest(f"local path {path!r} cannot be read: {error.strerror}") from error
    root = os.path.realpath(given)
    if stat.S_ISREG(status.st_mode):
        name = os.path.basename(given.rstrip("/"))
        found = Found(name, FILE, _permissions(status), stamp_of(status))
        return Scan(root, is_file=True, found=[found])
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidRequest(f"local path {path!r} is neither a file nor a directory")
    return _Walk(root, os.path.abspath(given), sync or SyncSpec()).run()


class _Walk:
    def __init__(self, root: str, given: str, sync: SyncSpec) -> None:
        self._scan = Scan(root)
        self._given = given
        self._sync = sync
        self._use_gitignore = True
        self._include = IgnoreRules(sync.include, any_depth=True)
        self._exclude = IgnoreRules(sync.exclude, any_depth=True)

    def run(self) -> Scan:
        chain = self._top_rules()
        list_of = self._scan.found
        list_of.extend(self._directory("", chain, included=not self._include))
        if self._include:
            self._scan.found = _with_contents(list_of)
        return self._scan

    def _top_rules(self) -> _Chain:
        top = _read_rules(f"{self._scan.root}/{SKYIGNORE}", any_depth=True)
        if top is not None:
            self._use_gitignore = False
            return ((top, "", 0),)
        chain, ignored_by = rules_around(self._scan.root)
        if ignored_by:
            self._use_gitignore = False
            self._scan.warnings.append(
                f"{self._scan.root} as a whole is ignored by git ({ignored_by}); its files are sent without any ignore "
                f"rules. Write a {SKYIGNORE} into it to choose."
            )
            return ()
        return chain

    def _directory(self, path: str, chain: _Chain, *, included: bool) -> Iterator[Found]:
        prefix = path + "/" if path else ""
        try:
            with os.scandir(self._scan.full_path(path) if path else self._scan.root) as listing:
                children = sorted(listing, key=lambda child: child.name)
        except OSError as error:
            raise _unreadable(path or ".", error) from error
        if self._use_gitignore:
            chain = self._extended(prefix, chain, {child.name for child in children})
        for child in children:
            yield from self._child(child, prefix + child.name, chain, included)

    def _extended(self, prefix: str, chain: _Chain, names: set[str]) -> _Chain:
        """The rules inside a directory: a repository of its own (a submodule) starts afresh, a .gitignore comes first."""
        folder = f"{self._scan.root}/{prefix}"
        if prefix and ".git" in names:
            own = _read_rules(_exclude_file(folder + ".git"))
            chain = ((own, "", len(prefix)),) if own else ()
        if GITIGNORE in names:
            rules = _read_rules(folder + GITIGNORE)
            if rules:
                chain = ((rules, "", len(prefix)), *chain)
        return chain

    def _child(self, child: os.DirEntry[str], path: str, chain: _Chain, included: bool) -> Iterator[Found]:
        name = child.name
        is_directory = child.is_dir(follow_symlinks=False)
        if name == ".git":
            if not self._sync.git:
                return
            chain = ()
        elif _ignored(chain, path, name, is_directory):
            return
        if self._exclude and self._exclude.verdict(path, name, is_directory):
            return
        if not included and self._include.verdict(path, name, is_directory):
            included = True
        try:
            status = child.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # Deleted since it was listed: as if it had never been there.
        if is_directory:
            yield Found(path, DIRECTORY, _permissions(status))
            yield from self._directory(path, chain, included=included)
        elif included and stat.S_ISREG(status.st_mode):
            yield Found(path, FILE, _permissions(status), stamp_of(status))
        elif included and stat.S_ISLNK(status.st_mode):
            yield Found(path, LINK, target=self._link_target(path))
        elif included:
            self._scan.warnings.append(f"{path} is neither a file, a directory nor a link; it is not sent")

    def _link_target(self, path: str) -> str:
        """Absolute targets inside the tree become relative, so that they hold on the node; others are kept as they are."""
        target = os.readlink(self._scan.full_path(path))
        if not os.path.isabs(target):
            return target
        for root in (self._scan.root, self._given):
            inside = os.path.relpath(target, root)
            if inside != ".." and not inside.startswith("../"):
                return os.path.relpath(inside, os.path.dirname(path) or ".")
        self._scan.warnings.append(
            f"{path} is a link to {target}, outside of what is sent; the node gets the link only"
        )
        return target


def _with_contents(found: list[Found]) -> list[Found]:
    """With `sync.include`, only directories that have something to send in them."""
    kept: list[Found] = []
    below = ""
    for item in reversed(found):
        if item.kind != DIRECTORY or below.startswith(item.path + "/"):
            kept.append(item)
            below = item.path
    kept.reverse()
    return kept


def rules_around(root: str) -> tuple[_Chain, str]:
    """The rules of the checkout that `root` lies in, for paths relative to root; and which one ignores root itself, if any."""
    top, inner = _checkout_of(root)
    if top is None:
        return (), ""
    chain: _Chain = ()
    exclude = _read_rules(_exclude_file(f"{top}/.git"))
    if exclude:
        chain = ((exclude, inner + "/" if inner else "", 0),)
    folder, rest = top, inner
    while rest:
        rules = _read_rules(f"{folder}/{GITIGNORE}")
        if rules:
            chain = ((rules, rest + "/", 0), *chain)
        name, _, rest = rest.partition("/")
        if any(_first_verdict(chain, inner, rest, name)):
            return (), f"{os.path.relpath(f'{folder}/{name}', top)} in {top}"
        folder = f"{folder}/{name}"
    return chain, ""


def _first_verdict(chain: _Chain, inner: str, rest: str, name: str) -> Iterator[bool]:
    """What the chain says of the ancestor of root that ends where `rest` begins."""
    cut = len(rest) + 1 if rest else 0
    for rules, before, _ in chain:
        whole = before.rstrip("/")
        verdict = rules.verdict(whole[: len(whole) - cut] if cut else whole, name, True)
        if verdict is not None:
            yield verdict
            return


def _checkout_of(root: str) -> tuple[str | None, str]:
    folder, inner = root, ""
    while True:
        if os.path.lexists(os.path.join(folder, ".git")):
            return folder, inner
        parent, name = os.path.split(folder)
        if parent == folder:
            return None, ""
        folder, inner = parent, f"{name}/{inner}" if inner else name


def _exclude_file(git: str) -> str:
    """.git/info/exclude, also where .git is a file that says where the repository lies (submodule, worktree)."""
    if os.path.isfile(git):
        with open(git, encoding="utf-8", errors="surrogateescape") as file:
            kind, _, place = file.readline().strip().partition(": ")
        if kind == "gitdir":
            git = os.path.join(os.path.dirname(git), place)
            common = os.path.join(git, "commondir")
            if os.path.isfile(common):
                with open(common, encoding="utf-8", errors="surrogateescape") as file:
                    git = os.path.join(git, file.readline().strip())
    return os.path.join(git, "info", "exclude")


def _read_rules(file: str, *, any_depth: bool = False) -> IgnoreRules | None:
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
            return IgnoreRules(text, any_depth=any_depth)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(file, error) from error


def _ignored(chain: _Chain, path: str, name: str, is_directory: bool) -> bool:
    for rules, before, cut in chain:
        verdict = rules.verdict(before + path[cut:], name, is_directory)
        if verdict is not None:
            return verdict
    return False


def _permissions(status: os.stat_result) -> int:
    return stat.S_IMODE(status.st_mode) & 0o777


def _unreadable(path: str, error: OSError) -> InvalidRequest:
    return InvalidRequest(
        f"{path} cannot be read: {error.strerror}", hint=f"Make it readable, or name it in {SKYIGNORE}."
    )
