"""Averages arrays between the ranks of a job, over TCP. Rank 0 collects, averages and sends back; plain, and enough for a few ranks."""

from __future__ import annotations

import socket
import struct
import time
from types import TracebackType

import numpy as np

CONNECT_SECONDS = 30.0
Arrays = list[np.ndarray]


class Ranks:
    """All ranks call the same methods in the same order."""

    def __init__(self, rank: int, addresses: list[str], port: int) -> None:
        self.rank = rank
        self.size = len(addresses)
        self._links = self._accept(addresses[0], port) if rank == 0 else [self._connect(addresses[0], port)]

    def __enter__(self) -> Ranks:  # noqa: PYI034  (any Python 3.9 runs this)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            link.close()

    def mean(self, arrays: Arrays) -> Arrays:
        """The mean over all ranks, the same on each of them."""
        return self._combined(arrays, lambda every: sum(every) / np.float32(self.size))

    def smallest(self, value: float) -> float:
        return float(self._combined([np.array([value])], lambda every: np.min(every, axis=0))[0][0])

    def from_first(self, arrays: Arrays) -> Arrays:
        """Rank 0's arrays on every rank."""
        return self._combined(arrays, lambda every: every[0])

    def _combined(self, arrays: Arrays, combine: object) -> Arrays:
        flat = np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])
        if self.rank == 0:
            every = [flat, *(_receive(link) for link in self._links)]
            flat = np.asarray(combine(every), np.float32)  # type: ignore[operator]
            for link in self._links:
                _send(link, flat)
        else:
            _send(self._links[0], flat)
            flat = _receive(self._links[0])
        parts = np.split(flat, np.cumsum([np.size(array) for array in arrays])[:-1])
        return [part.reshape(np.shape(array)) for part, array in zip(parts, arrays, strict=True)]

    def _accept(self, address: str, port: int) -> list[socket.socket]:
        """The links in the order of ranks, so that every run adds up in the same order."""
        links: dict[int, socket.socket] = {}
        with socket.create_server((address, port)) as listener:
            listener.settimeout(CONNECT_SECONDS)
            while len(links) < self.size - 1:
                link, _ = listener.accept()
                link.settimeout(CONNECT_SECONDS)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                links[struct.unpack("!I", _exactly(link, 4))[0]] = link
        return [links[rank] for rank in sorted(links)]

    def _connect(self, address: str, port: int) -> socket.socket:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                link = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(struct.pack("!I", self.rank))
        return link


def _send(link: socket.socket, flat: np.ndarray) -> None:
    data = flat.astype("<f4").tobytes()
    link.sendall(struct.pack("!Q", len(data)) + data)


def _receive(link: socket.socket) -> np.ndarray:
    (length,) = struct.unpack("!Q", _exactly(link, 8))
    return np.frombuffer(_exactly(link, length), "<f4").copy()


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = link.recv(min(1 << 20, count - len(data)))
        if not piece:
            raise ConnectionError("another rank has gone")
        data += piece
    return bytes(data)
