"""Uploads in Redis, for several machines. An upload is a hash, its pieces a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from services.errors import Unavailable
from services.store import redis_client
from services.store.crypto import Seals
from services.store.uploads import About, Upload, UploadStore, not_found

if TYPE_CHECKING:
    import redis

AT_ONCE = 100               # pieces, or uploads, of one look
TRIES = 20                  # of a change that others change meanwhile
# keys: the upload, its pieces, what each owner keeps. args: owner, piece, its size. 0 when the upload is gone.
_APPEND = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HINCRBY', KEYS[1], 'size', ARGV[3])
redis.call('HINCRBY', KEYS[3], ARGV[1], ARGV[3])
return 1
"""


class RedisUploads(UploadStore):
    """`client`: one whose replies are bytes."""

    def __init__(self, client: redis.Redis, namespace: str = "parley", cipher: Seals | None = None,
                 most: int = 1 << 30) -> None:
        super().__init__(cipher, most)
        self._client: Any = client
        self._prefix = f"{{{namespace}}}:uploads:"      # in braces, so that a cluster keeps all of it in one place
        self._append = client.register_script(_APPEND)

    def put(self, owner: str, id: str, kind: str, about: About, pieces: Sequence[bytes] = ()) -> Upload:
        size, created = sum(map(len, pieces)), time.time()
        with redis_client.told():
            self.check_room(int(self._client.hget(f"{self._prefix}sizes", owner) or 0), size)
            number = int(self._client.incr(f"{self._prefix}number"))
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(self._key(id), mapping={
                "owner": owner, "kind": kind, "number": number, "created": created, "size": size,
                "about": self.pack_about(owner, id, about), "sealed": int(self.cipher is not None)})
            if pieces:
                pipe.rpush(self._pieces(owner, id), *(self._marked(owner, id, piece) for piece in pieces))
            for index in self._indexes(owner, kind):
                pipe.zadd(index, {id: number})
            pipe.hincrby(f"{self._prefix}sizes", owner, size)
            pipe.execute()
        return Upload(owner, id, kind, number, created, size, about)

    def _key(self, id: str) -> str:
        return f"{self._prefix}one:{id}"

    def _pieces(self, owner: str, id: str) -> str:
        return f"{self._prefix}pieces:{owner}/{id}"

    def _indexes(self, owner: str, kind: str) -> tuple[str, str]:
        return f"{self._prefix}all:{kind}", f"{self._prefix}of:{kind}:{owner}"

    def _marked(self, owner: str, id: str, piece: bytes) -> bytes:
        return (b"=" if self.cipher is None else b"+") + self.pack(owner, id, piece)

    def get(self, owner: str | None, id: str) -> Upload:
        with redis_client.told():
            return self._upload(self._client.hgetall(self._key(id)), owner, id)

    def _upload(self, row: dict[bytes, bytes], owner: str | None, id: str) -> Upload:
        if not row or owner not in (None, row[b"owner"].decode()):
            raise not_found(id)
        whose = row[b"owner"].decode()
        return Upload(whose, id, row[b"kind"].decode(), int(row[b"number"]), float(row[b"created"]), int(row[b"size"]),
                      self.unpack_about(whose, id, row[b"about"], row[b"sealed"] == b"1"))

    def all(self, owner: str | None, kind: str, limit: int = 100, before: int | None = None) -> list[Upload]:
        index = f"{self._prefix}all:{kind}" if owner is None else f"{self._prefix}of:{kind}:{owner}"
        with redis_client.told():
            ids = [id.decode() for id in self._client.zrevrangebyscore(
                index, "+inf" if before is None else f"({before}", "-inf", 0, limit)]
            pipe = self._client.pipeline(transaction=False)
            for id in ids:
                pipe.hgetall(self._key(id))
            rows = pipe.execute()
        return [self._upload(row, owner, id) for id, row in zip(ids, rows, strict=True) if row]

    def change(self, owner: str, id: str, change: Callable[[About], About]) -> Upload:
        import redis
        for _ in range(TRIES):
            with redis_client.told(), self._client.pipeline() as pipe:
                pipe.watch(self._key(id))
                there = self._upload(pipe.hgetall(self._key(id)), owner, id)
                pipe.multi()
                pipe.hset(self._key(id), mapping={"about": self.pack_about(owner, id, change(there.about)),
                                                  "sealed": int(self.cipher is not None)})
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                return self.get(owner, id)
        raise Unavailable(f"{id} is changed by too many at once: try again", retry_after=1)

    def append(self, owner: str, id: str, piece: bytes) -> None:
        with redis_client.told():
            there = self._append(keys=[self._key(id), self._pieces(owner, id), f"{self._prefix}sizes"],
                                 args=[owner, self._marked(owner, id, piece), len(piece)])
        if not there:
            raise not_found(id)

    def pieces(self, owner: str, id: str, start: int = 0) -> Iterator[bytes]:
        while True:
            with redis_client.told():
                found = self._client.lrange(self._pieces(owner, id), start, start + AT_ONCE - 1)
            for piece in found:
                yield self.unpack(owner, id, piece[1:], piece[:1] == b"+")
            if len(found) < AT_ONCE:
                return
            start += len(found)

    def delete(self, owner: str, id: str) -> None:
        there = self.get(owner, id)
        with redis_client.told():
            pipe = self._client.pipeline(transaction=True)
            pipe.delete(self._key(id), self._pieces(owner, id))
            for index in self._indexes(owner, there.kind):
                pipe.zrem(index, id)
            pipe.hincrby(f"{self._prefix}sizes", owner, -there.size)
            pipe.execute()

    def close(self) -> None:
        self._client.close()
