"""Trees of files on their way to the nodes: what a manifest is, who asks whom for which chunks, and what is refused.

A file is a row of chunks of CHUNK_SIZE bytes (the last may be shorter; an empty file has none), each named by its sha256.
A manifest is ASCII text: one header line, then one JSON line per entry,
  {"skyloom_manifest":1,"chunk_size":4194304}
  ["src","d",493,0,""]
  ["src/a.py","f",420,12,"<64 hex digits for each chunk, joined>"]
  ["src/link","l",0,0,"a.py"]
Paths are relative and '/'-separated, odd bytes as surrogate escapes. Lines stand in tree order (sorted by the path's parts),
every directory before what is in it. So a receiver checks a manifest of any size line by line, and what passes holds no
duplicate, no file that is also a directory and nothing behind a symlink. Its id is the sha256 of that text; it travels gzipped.

Client -> gateway -> provisioner, prefix /api/v1 for clients and /v1 between services
  POST /files/manifests   a ManifestQuery, or a gzipped manifest (seen by its first two bytes) -> ManifestAnswer
  PUT  /files/chunks      frames (see file_frames.py) -> ChunksAnswer. Every frame is kept as soon as it is whole: a broken
                          upload goes on by asking again what is missing.
Provisioner -> agent
  POST /v1/files/plan     ?manifest_id &destination &is_file=0|1; body empty, or the gzipped manifest -> FilePlan
  PUT  /v1/files/chunks   frames -> ChunksAnswer
  POST /v1/files/apply    ApplyTree -> AppliedTree
Must not touch a disk: reading and writing files is the business of those who use this.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from skyloom_common.core.chunks import CHUNK_SIZE, HASH_DIGITS, chunk_count
from skyloom_common.core.errors import Conflict, InvalidRequest, TooLarge, Unavailable

MANIFEST_VERSION = 1
MAX_PACKED_MANIFEST = 128 * 1024 * 1024
MAX_FILES_BODY = MAX_PACKED_MANIFEST
"""What a service must let through under /v1/files (and the gateway under /api/v1/files)."""
MAX_MANIFEST = 512 * 1024 * 1024
MAX_ENTRIES = 2_000_000
MAX_PATH = 4096
MAX_NAME = 255

FILE, DIRECTORY, LINK = "f", "d", "l"
Entry = tuple[str, str, int, int, str]
"""(path, kind, permission bits, size, joined chunk hashes or link target)."""

_HEADER = b'{"skyloom_manifest":%d,"chunk_size":%d}\n' % (MANIFEST_VERSION, CHUNK_SIZE)
_BAD_PATH = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")
_HEX = re.compile(r"[0-9a-f]*")
_ID = re.compile(r"[0-9a-f]{64}")
_PIECE = 64 * 1024


class InvalidManifest(InvalidRequest):
    """A manifest that is damaged or that tries to write where it may not."""

    code = "invalid_manifest"


class CorruptChunk(InvalidRequest):
    """The bytes of a chunk are not those that its hash names; nothing of it was kept."""

    code = "corrupt_chunk"


class FilesMissing(Conflict):
    """A manifest or chunk that is needed is not in the file store (any more): upload again."""

    code = "files_missing"


class FileStoreFull(Unavailable):
    """The file store has reached its size limit, or its disk is full."""

    code = "file_store_full"
    http_status = 507


class NodeDiskFull(Unavailable):
    """The node's disk is full; the files at the destination are as they were."""

    code = "node_disk_full"
    http_status = 507


@dataclass(frozen=True)
class ManifestAnswer:
    """`known` False: the server does not have this manifest. `missing`: the chunks to send before the tree can be used."""

    id: str
    missing: tuple[str, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class ManifestQuery:
    """Do you still have it?"""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    id: str


@dataclass(frozen=True)
class ChunksAnswer:
    """`stored` of the `received` chunks were new."""

    received: int = 0
    stored: int = 0


@dataclass(frozen=True)
class FilePlan:
    """`need_manifest`: the node does not know this manifest, ask again with it. `changed`: entries that apply would write."""

    need_manifest: bool = False
    missing: tuple[str, ...] = ()
    changed: int = 0


@dataclass(frozen=True)
class ApplyTree:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    manifest_id: str
    destination: str
    is_file: bool = False


@dataclass(frozen=True)
class AppliedTree:
    """`missing` not empty: something that was to be reused on the node has changed meanwhile; nothing was written, send these."""

    entries: int = 0
    written: int = 0
    missing: tuple[str, ...] = ()


def check_destination(destination: str) -> str:
    """The destination itself, or InvalidRequest: absolute, `~/...` or relative to the workdir, and never upwards."""
    parts = destination.split("/")
    right = "use an absolute path, ~/NAME, or a path relative to the workdir"
    if not destination or "\0" in destination or len(destination) > MAX_PATH:
        raise _bad_destination(destination, right)
    if ".." in parts:
        raise _bad_destination(destination, f"'..' is not allowed; {right}")
    if parts[0].startswith("~") and parts[0] != "~":
        raise _bad_destination(destination, f"other users' homes are not reachable; {right}")
    return destination


def _bad_destination(destination: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"file_mounts: destination {destination[:200]!r}: {why}", details={"field": "file_mounts"}
    )


def check_id(text: str, what: str = "manifest id") -> str:
    """A sha256 in hex, so that it may become a file name."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidRequest(f"{what}: {str(text)[:80]!r} is not a sha256 (64 lower-case hex digits)")
    return text


def tree_order(path: str) -> str:
    """Sort key of manifests: a directory, then everything in it, then its next sibling."""
    return path.replace("/", "\0")


def split_hashes(joined: str) -> list[str]:
    return [joined[at : at + HASH_DIGITS] for at in range(0, len(joined), HASH_DIGITS)]


def encode_manifest(entries: Iterable[Entry]) -> bytes:
    """The canonical text. `entries` must be in tree order."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    lines = [encode(entry) for entry in entries]
    return _HEADER + ("\n".join(lines) + "\n").encode("ascii") if lines else _HEADER


def manifest_id(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def pack_manifest(text: bytes) -> bytes:
    """As it travels. Hashes hardly shrink, so the quickest level does."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(text) + packer.flush()


def unpack_entries(packed: bytes, expected_id: Optional[str] = None) -> Iterator[Entry]:
    """The entries of a gzipped manifest, each validated, in memory that does not grow with the manifest.

    Raises InvalidManifest (or TooLarge) at the first fault; with `expected_id` also at the end when the text has another id.
    """
    digest = hashlib.sha256()
    yield from _checked(_rows(_unpacked(packed, digest)))
    if expected_id is not None and digest.hexdigest() != expected_id:
        raise InvalidManifest(
            f"the manifest's content has the id {digest.hexdigest()[:12]}, not {expected_id[:12]}"
        )


def parse_manifest(packed: bytes) -> tuple[str, list[Entry]]:
    """(id, entries) of a gzipped manifest that fits in memory."""
    digest = hashlib.sha256()
    entries = list(_checked(_rows(_unpacked(packed, digest))))
    return digest.hexdigest(), entries


def needed_chunks(entries: Iterable[Entry]) -> dict[str, int]:
    """Every chunk of the entries with its length, in the order of first use."""
    sizes: dict[str, int] = {}
    for _, kind, _, size, data in entries:
        if kind != FILE:
            continue
        if size <= CHUNK_SIZE:
            if size:
                sizes[data] = size
            continue
        hashes = split_hashes(data)
        for name in hashes[:-1]:
            sizes[name] = CHUNK_SIZE
        sizes[hashes[-1]] = size - CHUNK_SIZE * (len(hashes) - 1)
    return sizes


def _unpacked(packed: bytes, digest: Any) -> Iterator[bytes]:
    """Inflates piece by piece; a bomb is refused when it has grown past the limit, not when it is in memory."""
    if len(packed) > MAX_PACKED_MANIFEST:
        raise TooLarge(f"the manifest has {len(packed)} bytes; at most {MAX_PACKED_MANIFEST} are taken")
    inflate = zlib.decompressobj(31)
    total = 0
    try:
        for at in range(0, len(packed), _PIECE):
            piece = packed[at : at + _PIECE]
            while piece:
                text = inflate.decompress(piece, 4 * _PIECE)
                piece = inflate.unconsumed_tail
                total += len(text)
                if total > MAX_MANIFEST:
                    raise TooLarge(
                        f"the manifest is longer than {MAX_MANIFEST} bytes; sync fewer files (.skyignore)"
                    )
                digest.update(text)
                yield text
    except zlib.error as error:
        raise InvalidManifest(f"the manifest is not gzip: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise InvalidManifest("the manifest is cut off or has something behind its end")


def _rows(texts: Iterator[bytes]) -> Iterator[Any]:
    """The JSON rows behind the header; many lines are decoded at once, which is several times quicker than one by one."""
    rest = b""
    header_seen = False
    for text in texts:
        head, newline, tail = text.rpartition(b"\n")
        if not newline:
            rest += text
            continue
        block, rest = rest + head, tail
        if not header_seen:
            header, newline, block = block.partition(b"\n")
            _check_header(header + b"\n")
            header_seen = True
            if not newline:
                continue
        yield from _decoded(block)
    if rest or not header_seen:
        raise InvalidManifest("the manifest does not end with a whole line")


def _check_header(header: bytes) -> None:
    if header != _HEADER:
        raise InvalidManifest(
            f"the manifest begins with {header[:80]!r}; this version reads {_HEADER!r}",
            hint="Use the same Skyloom version on both sides.",
        )


def _decoded(block: bytes) -> list[Any]:
    try:
        rows = json.loads(b"[" + block.replace(b"\n", b",") + b"]")
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"the manifest has a line that is not JSON: {error}") from error
    if not block or not isinstance(rows, list):
        raise InvalidManifest("the manifest has an empty line")
    return rows


def _checked(rows: Iterable[Any]) -> Iterator[Entry]:
    inside = [""]
    last = ""
    for count, row in enumerate(rows):
        if count >= MAX_ENTRIES:
            raise TooLarge(f"the manifest has more than {MAX_ENTRIES} entries; sync fewer files (.skyignore)")
        if type(row) is not list or len(row) != 5:
            raise InvalidManifest(
                f"manifest entry {count}: {str(row)[:80]} is not [path, kind, mode, size, data]"
            )
        path, kind, mode, size, data = row
        if type(path) is not str or _BAD_PATH.search(path) or len(path) > 60 or not path.isascii():
            _check_path(path)
        order = path.replace("/", "\0")
        if order <= last:
            raise InvalidManifest(f"manifest: {path!r} comes twice or out of order")
        last = order
        while not path.startswith(inside[-1]):
            inside.pop()
        if path.find("/", len(inside[-1])) >= 0:
            raise InvalidManifest(
                f"manifest: {path!r} lies in something that is not a directory of this manifest"
            )
        _check_content(path, kind, mode, size, data)
        if kind == DIRECTORY:
            inside.append(path + "/")
        yield path, kind, mode, size, data


def _check_content(path: str, kind: Any, mode: Any, size: Any, data: Any) -> None:
    if type(mode) is not int or not 0 <= mode <= 0o777 or type(size) is not int or type(data) is not str:
        raise InvalidManifest(f"manifest: {path!r} has a mode, size or data of the wrong form")
    if kind == FILE:
        if size < 0 or len(data) != HASH_DIGITS * chunk_count(size) or not _HEX.fullmatch(data):
            raise InvalidManifest(
                f"manifest: {path!r} has {size} bytes, but its chunk hashes do not fit to that"
            )
    elif kind == LINK:
        if not data or "\0" in data or len(data) > MAX_PATH:
            raise InvalidManifest(f"manifest: the link {path!r} has no target that a link can have")
    elif kind != DIRECTORY:
        raise InvalidManifest(f"manifest: {path!r} is of the kind {str(kind)[:20]!r}; there are f, d and l")


def _check_path(path: Any) -> None:
    if type(path) is not str or not path or _BAD_PATH.search(path):
        raise InvalidManifest(
            f"manifest: path {str(path)[:200]!r} is refused; paths are relative, without '.', '..', '//' or NUL"
        )
    try:
        names = path.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError:
        raise InvalidManifest(f"manifest: path {path[:200]!r} is not a file name") from None
    if len(path) > MAX_PATH or max(map(len, names)) > MAX_NAME:
        raise InvalidManifest(f"manifest: path {path[:60]!r}... is longer than file systems take")
