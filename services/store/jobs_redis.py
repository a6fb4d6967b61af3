"""Jobs in Redis, for executors on many machines. All times are the Redis server's. The steps are in `jobs_lua`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.store import jobs_lua, redis_client
from services.store.crypto import Seals
from services.store.jobs import (
    CANCELLED,
    ERROR,
    MAX_DELAY,
    NORMAL,
    PENDING,
    RUNNING,
    SUCCESS,
    Job,
    JobLost,
    JobStore,
    Limits,
    Pulse,
    Row,
    Sizes,
    checked,
    damaged,
    exists,
    given_up,
    not_failed,
    not_found,
    opened,
    shown,
    told_of,
    too_many,
)

if TYPE_CHECKING:
    import redis

LOOK = 1.0                  # seconds that one call waits for the bell; below redis_client.ANSWER
AT_ONCE = 200               # jobs of one look at a list
_LANES = ("high", "normal", "callback")
_WAITING = tuple(f"{place}:{lane}" for place in ("queue", "front", "delayed") for lane in _LANES)
_TEXTS = ("owner", "id", "type", "priority", "state", "worker", "code", "result", "callback")
_WHOLE = ("number", "attempts", "fence", "chunks_done", "chunks_total")
_TIMES = ("created", "start", "end", "expires")
_LISTED = (*_TEXTS, *_WHOLE, *_TIMES)


class RedisJobs(JobStore):
    def __init__(self, client: redis.Redis, namespace: str = "parley", cipher: Seals | None = None,
                 limits: Limits = Limits()) -> None:
        super().__init__(cipher, limits)
        self._client: Any = client                  # whose types cannot tell it from the one for asyncio
        self._prefix = f"{{{namespace}}}:jobs:"     # in braces, so that a cluster keeps all of it in one place
        self._scripts = {name: client.register_script(getattr(jobs_lua, name)) for name in (
            "PUT", "TAKE", "RENEW", "FINISH", "CANCEL", "RELEASE", "LOSE", "CALLBACK", "SWEEP")}

    def _run(self, name: str, *values: object) -> Any:
        with redis_client.told():
            return self._scripts[name](keys=[self._prefix], args=[str(value) for value in values])

    # ------------------------------------------------------------ in and out

    def put(self, job: Job) -> Job:
        return self._put(checked(job))

    def _again(self, job: Job) -> Job:
        return self._put(job)

    def _put(self, job: Job) -> Job:
        callback = "" if job.callback is None else self.codec.pack(job.owner, job.id, job.callback)
        done = self._run("PUT", job.owner, job.id, job.type, job.priority, job.chunks_total,
                         self.codec.pack(job.owner, job.id, job.payload), callback, uuid.uuid4().hex, job.fence,
                         self.limits.per_owner)
        if done == "exists":
            raise exists()
        if done == "other":
            raise not_failed(PENDING)
        if done == "many":
            raise too_many(self.limits)
        return replace(job, number=int(done[0]), created=float(done[1]))

    def get(self, owner: str | None, id: str) -> Job:
        with redis_client.told():
            found = self._client.hgetall(self._key(self._member(owner, id)))
        if not found:
            raise not_found()
        try:
            return opened(_row(found), self.codec)
        except ValueError:
            raise damaged(id) from None

    def _member(self, owner: str | None, id: str) -> str:
        """For None that of the newest job."""
        if owner is not None:
            return f"{owner}/{id}"
        with redis_client.told():
            members = [f"{one}/{id}" for one in self._client.smembers(f"{self._prefix}ids:{id}")]
            numbers = {member: int(self._client.hget(self._key(member), "number") or 0) for member in members}
        if not numbers:
            raise not_found()
        return max(numbers, key=lambda member: numbers[member])

    def _key(self, member: str) -> str:
        return f"{self._prefix}job:{member}"

    def all(self, owner: str | None, *, states: Collection[str] = (), types: Collection[str] = (), limit: int = 100,
            before: int | None = None) -> list[Job]:
        found: list[Job] = []
        name = "dead" if set(states) == {ERROR} else "all" if owner is None else "owner"
        for row in self._newest(name if owner is None else f"{name}:{owner}", before):
            if (not states or row["state"] in states) and (not types or row["type"] in types):
                found.append(shown(row, self.codec))
                if len(found) == limit:
                    break
        return found

    def _newest(self, name: str, before: int | None) -> Iterator[Row]:
        below = "+inf" if before is None else f"({before}"
        while True:
            with redis_client.told():
                members = self._client.zrevrangebyscore(self._prefix + name, below, "-inf", 0, AT_ONCE)
                rows = self._look(members, _LISTED)
            yield from (_row(row) for row in rows if row.get("number"))
            if len(members) < AT_ONCE or not rows[-1].get("number"):
                return
            below = f"({rows[-1]['number']}"

    def _look(self, members: Collection[str], names: tuple[str, ...]) -> list[dict[str, str]]:
        """Those fields of some jobs that they have."""
        with redis_client.told(), self._client.pipeline(transaction=False) as pipe:
            for member in members:
                pipe.hmget(self._key(member), names)
            return [{name: value for name, value in zip(names, values, strict=True) if value is not None}
                    for values in pipe.execute()]

    # ------------------------------------------------------------ the attempts

    def _take(self, worker: str, types: Collection[str], lease_seconds: float) -> Row | None:
        found = self._run("TAKE", worker, lease_seconds, MAX_DELAY, uuid.uuid4().hex, *types)
        return _row(dict(zip(found[::2], found[1::2], strict=True))) if found else None

    def renew(self, job: Job, lease_seconds: float, done: int = 0, total: int = 0) -> None:
        if not self._run("RENEW", f"{job.owner}/{job.id}", job.fence, lease_seconds, done, total):
            raise JobLost(job.id)

    def finish(self, job: Job, state: str, result: Any = None, code: str | None = None) -> Job:
        assert state in (SUCCESS, ERROR), state
        done = self._run("FINISH", f"{job.owner}/{job.id}", job.fence, state,
                         self.codec.pack(job.owner, job.id, result), code or "", self._kept(state), *self._told(job))
        if not done:
            raise JobLost(job.id)
        return replace(job, state=state, result=result, code=code, end=float(done[0]), expires=float(done[1]))

    def _kept(self, state: str) -> float:
        return self.limits.failed_kept if state == ERROR else self.limits.kept

    def _told(self, job: Job | Pulse) -> tuple[str, str]:
        """Id and payload of the job that tells the callback, should there be one."""
        id = str(uuid.uuid4())
        return id, self.codec.pack(job.owner, id, told_of(job))

    def cancel(self, owner: str | None, id: str) -> Job:
        found = self._run("CANCEL", self._member(owner, id), self._kept(CANCELLED))
        if not found:
            raise not_found()
        return shown(_row(dict(zip(found[::2], found[1::2], strict=True))), self.codec)

    def release(self, job: Job, delay: float = 0.0, *, counted: bool = False, back: bool = False) -> None:
        assert delay <= MAX_DELAY, delay
        if not self._run("RELEASE", f"{job.owner}/{job.id}", job.fence, delay, int(counted), int(back)):
            raise JobLost(job.id)

    def _pulses(self, worker: str | None = None) -> list[Pulse]:
        with redis_client.told():
            members = list(self._client.sunion([f"{self._prefix}running:{lane}" for lane in _LANES]))
        rows = self._look(members, ("owner", "id", "fence", "beat", "lease", "worker"))
        return [Pulse(row["owner"], row["id"], int(row["fence"]), int(row["beat"]), float(row["lease"]))
                for row in rows if row and worker in (None, row["worker"])]

    def _lose(self, pulse: Pulse, most: int) -> bool:
        result, code = given_up(most)
        return bool(self._run("LOSE", f"{pulse.owner}/{pulse.id}", pulse.fence, pulse.beat, most,
                              self.codec.pack(pulse.owner, pulse.id, result), code, self._kept(ERROR),
                              *self._told(pulse)))

    # ------------------------------------------------------------ besides

    def tell_callback(self, job: Job, callback: dict[str, Any]) -> None:
        self._run("CALLBACK", f"{job.owner}/{job.id}", job.fence, job.state,
                  self.codec.pack(job.owner, job.id, callback))

    def sweep(self, now: float | None = None) -> int:
        return int(self._run("SWEEP", "" if now is None else now))

    def sizes(self, owner: str | None = None) -> Sizes:
        if owner is not None:
            return self._sizes_of(owner)
        with redis_client.told(), self._client.pipeline(transaction=False) as pipe:
            for lane in _LANES[:2]:
                for place in ("queue", "front", "delayed"):
                    pipe.zcard(f"{self._prefix}{place}:{lane}")
                pipe.scard(f"{self._prefix}running:{lane}")
            pipe.zcard(self._prefix + "dead")
            *counts, dead = pipe.execute()
        (q1, f1, d1, r1), (q2, f2, d2, r2) = counts[:4], counts[4:]
        return Sizes(normal=q2 + f2 + d2, high=q1 + f1 + d1, delayed=d1 + d2, running=r1 + r2, dead=dead)

    def _sizes_of(self, owner: str) -> Sizes:
        with redis_client.told():
            rows = self._look(self._client.smembers(f"{self._prefix}busy:{owner}"), ("state", "priority"))
            dead = self._client.zcard(f"{self._prefix}dead:{owner}")
            delayed = sum(name.split("|", 2)[2].startswith(f"{owner}/") for lane in _LANES[:2]
                          for name in self._client.zrange(f"{self._prefix}delayed:{lane}", 0, -1))
        pending = [row for row in rows if row.get("state") == PENDING]
        normal = sum(row["priority"] == NORMAL for row in pending)
        return Sizes(normal=normal, high=len(pending) - normal, delayed=delayed,
                     running=sum(row.get("state") == RUNNING for row in rows), dead=dead)

    def busy(self) -> bool:
        names = [self._prefix + name for name in (*_WAITING, *(f"running:{lane}" for lane in _LANES))]
        with redis_client.told():
            return bool(self._client.exists(*names))

    def _secret(self, fresh: str) -> str:
        with redis_client.told():
            self._client.set(self._prefix + "secret", fresh, nx=True)
            return str(self._client.get(self._prefix + "secret"))

    def wait(self, seconds: float) -> None:
        """One of those that wait hears each new job."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with redis_client.told():
                if self._client.blpop([self._prefix + "bell"], timeout=min(left, LOOK)):
                    return

    def close(self) -> None:
        self._client.close()


def _row(found: dict[str, str]) -> Row:
    row: Row = {name: found.get(name) for name in (*_TEXTS, "payload")}
    row.update({name: int(found[name]) for name in _WHOLE})
    row.update({name: float(found[name]) if name in found else None for name in _TIMES})
    return row
