"""Files of clients, and what is made of them piece by piece: `/v1/files` and `/v1/batches`. The contract; SQLite and
Redis keep it (`uploads_sqlite`, `uploads_redis`).

An upload is a record with pieces of bytes, in their order. What is appended is durable when `append` returns, so what
breaks off goes on after the last piece.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.errors import Gone, NotFound, TooManyRequests
from services.store.crypto import Seals

About = dict[str, Any]


@dataclass(frozen=True)
class Upload:
    """`number`: the order of arrival. `created`: epoch seconds. `size`: bytes of all pieces. `about`: JSON."""

    owner: str
    id: str
    kind: str
    number: int
    created: float
    size: int
    about: About = field(repr=False)


class UploadStore(ABC):
    """Any thread may use it, and so may other processes. Raises `Unavailable` and `StorageFull`, besides what is said.
    `owner=None` means every owner's: the master's view. Ids are unique among all owners."""

    def __init__(self, cipher: Seals | None = None, most: int = 1 << 30) -> None:
        """`most`: bytes that one owner may keep."""
        self.cipher, self.most = cipher, most

    @abstractmethod
    def put(self, owner: str, id: str, kind: str, about: About, pieces: Sequence[bytes] = ()) -> Upload:
        """A new one. `TooManyRequests` (`too_many_files`) when its owner keeps too much."""

    @abstractmethod
    def get(self, owner: str | None, id: str) -> Upload:
        """`NotFound` (`file_not_found`)."""

    @abstractmethod
    def all(self, owner: str | None, kind: str, limit: int = 100, before: int | None = None) -> list[Upload]:
        """The newest first. `before`: a number."""

    @abstractmethod
    def change(self, owner: str, id: str, change: Callable[[About], About]) -> Upload:
        """Replace `about` by what `change` makes of it, in one step. `NotFound`."""

    @abstractmethod
    def append(self, owner: str, id: str, piece: bytes) -> None:
        """`NotFound`."""

    @abstractmethod
    def pieces(self, owner: str, id: str, start: int = 0) -> Iterator[bytes]:
        """From the `start`th on; nothing for what is not there."""

    @abstractmethod
    def delete(self, owner: str, id: str) -> None:
        """`NotFound`."""

    @abstractmethod
    def close(self) -> None: ...

    # ------------------------------------------------------------ what is stored

    def pack(self, owner: str, id: str, data: bytes) -> bytes:
        return data if self.cipher is None else self.cipher.seal(owner, f"upload/{id}", data).encode()

    def unpack(self, owner: str, id: str, stored: bytes, sealed: bool) -> bytes:
        if not sealed:
            return stored
        try:
            if self.cipher is None:
                raise ValueError("sealed")
            return self.cipher.unseal(owner, f"upload/{id}", stored.decode())
        except ValueError:
            raise Gone(f"{id}: its stored text cannot be read: it is damaged, or DATA_KEY is another one",
                       code="file_damaged") from None

    def pack_about(self, owner: str, id: str, about: About) -> bytes:
        return self.pack(owner, f"{id}/about", json.dumps(about, separators=(",", ":")).encode())

    def unpack_about(self, owner: str, id: str, stored: bytes, sealed: bool) -> About:
        about: About = json.loads(self.unpack(owner, f"{id}/about", stored, sealed))
        return about

    def check_room(self, used: int, more: int) -> None:
        if used + more > self.most:
            raise TooManyRequests(f"this key keeps {used} bytes of files, and {more} more are over the {self.most} "
                                  "that it may (MAX_FILES_BYTES): delete some", code="too_many_files")


def not_found(id: str) -> NotFound:
    return NotFound(f"there is no file {id[:80]!r}", code="file_not_found")
