"""A small document in Redis that several servers read and change: whole or not at all, and never over a change that
its changer has not seen."""

from __future__ import annotations

import uuid

from services.store.redis_link import Link

# version that the changer saw ('': there was none), version and content of now: 1; 0 when another was faster
_REPLACE = """
local there = redis.call('HGET', KEYS[1] .. 'document', 'version') or ''
if there ~= ARGV[1] and there ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1] .. 'document', 'version', ARGV[2], 'content', ARGV[3])
return 1
"""
STEPS = {"REPLACE": _REPLACE}


class RedisDocument:
    """The document of a link's room. A version is 32 hex digits that no other one has. Raises as `Link.told`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._key = link.key("document")

    def version(self) -> str | None:
        """None where there is no document."""
        with self._link.told():
            found: bytes | None = self._link.client.hget(self._key, "version")
        return None if found is None else found.decode()

    def read(self) -> tuple[bytes, str]:
        """Its content and version. FileNotFoundError where there is none."""
        with self._link.told():
            version, content = self._link.client.hmget(self._key, "version", "content")
        if version is None or content is None:
            raise FileNotFoundError(self._key)
        return content, version.decode()

    def replace(self, content: bytes, before: str | None) -> bool:
        """False, and nothing is changed, unless `before` is still its version; None: there is none yet."""
        return bool(self._link.run("REPLACE", before or "", uuid.uuid4().hex, content))
