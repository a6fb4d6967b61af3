"""Uploads in Redis, for several machines. An upload is a hash, its pieces a list."""

from __future__ import annotations

import time
import uuid
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
# Each step may reach Redis twice, since a call whose connection breaks is sent again: it has the effect of one then.
# keys: the upload, its pieces, what each owner keeps, the last number, its indexes. args: owner, id, kind, created,
# size, about, sealed, most, pieces. The upload's number, or what its owner keeps where that leaves no room.
_PUT = """
local known = redis.call('HGET', KEYS[1], 'number')
if known then return {known} end
local used = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or '0')
if used + tonumber(ARGV[5]) > tonumber(ARGV[8]) then return {false, string.format('%.0f', used)} end
local number = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'kind', ARGV[3], 'number', number, 'created', ARGV[4], 'size', ARGV[5],
  'about', ARGV[6], 'sealed', ARGV[7])
for at = 9, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[at]) end
for at = 5, #KEYS do redis.call('ZADD', KEYS[at], number, ARGV[2]) end
redis.call('HINCRBY', KEYS[3], ARGV[1], ARGV[5])
return {tostring(number)}
"""
# keys: the upload, its pieces, what each owner keeps. args: owner, piece, its size, a word of its own; the last 16 of
# these are known. 0 when the upload is gone.
_APPEND = """
local owner, known = unpack(redis.call('HMGET', KEYS[1], 'owner', 'appended'))
if owner ~= ARGV[1] then return 0 end
if known and string.find(known, ARGV[4], 1, true) then return 1 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], 'appended', string.sub(ARGV[4] .. (known or ''), 1, 16 * #ARGV[4]))
redis.call('HINCRBY', KEYS[1], 'size', ARGV[3])
redis.call('HINCRBY', KEYS[3], ARGV[1], ARGV[3])
return 1
"""
# keys: the upload, its pieces, what each owner keeps, its indexes. args: owner, id.
_DELETE = """
local size = redis.call('HGET', KEYS[1], 'size')
if not size then return end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HINCRBY', KEYS[3], ARGV[1], string.format('%.0f', 0 - size))
for at = 4, #KEYS do redis.call('ZREM', KEYS[at], ARGV[2]) end
"""


class RedisUploads(UploadStore):
    """`client`: one whose replies are bytes."""

    def __init__(self, client: redis.Redis, namespace: str = "parley", cipher: Seals | None = None,
                 most: int = 1 << 30) -> None:
        super().__init__(cipher, most)
        self._client: Any = client
        self._prefix = f"{{{namespace}}}:uploads:"      # in braces, so that a cluster keeps all of it in one place
        self._put, self._append, self._delete = map(client.register_script, (_PUT, _APPEND, _DELETE))

    def put(self, owner: str, id: str, kind: str, about: About, pieces: Sequence[bytes] = ()) -> Upload:
        size, created = sum(map(len, pieces)), time.time()
        with redis_client.told():
            number, *used = self._put(
                keys=[self._key(id), self._pieces(owner, id), f"{self._prefix}sizes", f"{self._prefix}number",
                      *self._indexes(owner, kind)],
                args=[owner, id, kind, created, size, self.pack_about(owner, id, about), int(self.cipher is not None),
                      self.most, *(self._marked(owner, id, piece) for piece in pieces)])
        if number is None:
            self.check_room(int(used[0]), size)
        return Upload(owner, id, kind, int(number), created, size, about)

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
                                 args=[owner, self._marked(owner, id, piece), len(piece), uuid.uuid4().hex])
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
            self._delete(keys=[self._key(id), self._pieces(owner, id), f"{self._prefix}sizes",
                               *self._indexes(owner, there.kind)], args=[owner, id])

    def close(self) -> None:
        self._client.close()
