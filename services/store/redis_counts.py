"""What keys use, counted in Redis for all servers together, each step whole or not at all. Times are Redis' own.

    hits:<key>               when its requests of the last window were, in µs, the oldest first
    tokens:<key>             by time: "<charge>:<amount>" of the last window
    used:<key>               requests, prompt_tokens and completion_tokens since it was made
    spent:<key>:<period>     tokens in one day or month of UTC
    places:<server>          by name: how many of a server's places are taken; ends by itself when the server has died
    servers                  those that have places taken, or had when they died
    charged:<server>         number of its last charge, since one may be sent again
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services import wire
from services.store.redis_link import LEASE, Link

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function whole(number)
  return string.format('%.0f', number)
end
"""
_HOLD = """
local function hold(server, lease, name, count)
  local places = KEYS[1] .. 'places:' .. server
  if tonumber(count) > 0 then
    redis.call('HSET', places, name, count)
  else
    redis.call('HDEL', places, name)
  end
  if redis.call('PEXPIRE', places, lease) == 1 then
    redis.call('SADD', KEYS[1] .. 'servers', server)
  else
    redis.call('SREM', KEYS[1] .. 'servers', server)
  end
end
"""
# server, ms of its lease, name, how many of it are taken: these places, and no others where ARGV[3] is 'all'
_PLACES = _HOLD + """
if ARGV[3] == 'all' then
  redis.call('DEL', KEYS[1] .. 'places:' .. ARGV[1])
end
for at = 4, #ARGV, 2 do
  hold(ARGV[1], ARGV[2], ARGV[at], ARGV[at + 1])
end
"""
# server, ms of its lease, key, name of a place and how many of it the server has with this one, max_parallel, requests
# per minute, cost, µs of a window, tokens per minute, tokens and period of a budget; '' for no limit. A call that is
# sent twice counts as two requests and one place.
_ADMIT = _NOW + _HOLD + """
local server, lease, key, name, own = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local parallel, rpm, cost, window = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local tpm, budget, period = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12]

local function token_wait()
  local uses = redis.call('ZREVRANGEBYSCORE', KEYS[1] .. 'tokens:' .. key, '+inf', '(' .. whole(now - window),
                          'WITHSCORES')
  local used = 0
  for at = 1, #uses, 2 do
    used = used + tonumber(string.match(uses[at], ':(%d+)$'))
    if used >= tpm then
      return math.max(uses[at + 1] + window - now, 1)
    end
  end
  return 0
end

local function spent()
  if period == 'total' then
    local used = redis.call('HMGET', KEYS[1] .. 'used:' .. key, 'prompt_tokens', 'completion_tokens')
    return (used[1] or 0) + (used[2] or 0)
  end
  return tonumber(redis.call('GET', KEYS[1] .. 'spent:' .. key .. ':' .. period) or '0')
end

local function others()
  local sum = 0
  for _, other in ipairs(redis.call('SMEMBERS', KEYS[1] .. 'servers')) do
    local places = KEYS[1] .. 'places:' .. other
    if other ~= server and redis.call('EXISTS', places) == 0 then
      redis.call('SREM', KEYS[1] .. 'servers', other)
    elseif other ~= server then
      sum = sum + (redis.call('HGET', places, name) or 0)
    end
  end
  return sum
end

if tpm then
  local wait = token_wait()
  if wait > 0 then
    return {'tokens', whole(wait)}
  end
end
if budget and spent() >= budget then
  return {'budget'}
end
if parallel and others() + own > parallel then
  return {'place'}
end
local left, reset = 0, 0
if rpm then
  local hits = KEYS[1] .. 'hits:' .. key
  local oldest = redis.call('LINDEX', hits, 0)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('LPOP', hits)
    oldest = redis.call('LINDEX', hits, 0)
  end
  local count = redis.call('LLEN', hits)
  reset = oldest and math.min(oldest + window - now, window) or 0
  if count > rpm then                               -- which was higher
    reset = math.min(redis.call('LINDEX', hits, count - rpm) + window - now, window)
  end
  if count + math.max(cost, 1) > rpm then
    return {'request', whole(reset)}
  end
  for _ = 1, cost do
    redis.call('RPUSH', hits, whole(now))
  end
  if cost > 0 then
    redis.call('PEXPIRE', hits, whole(window / 1000))
    reset = oldest and reset or window
  end
  left = rpm - count - cost
end
if cost > 0 then
  redis.call('HINCRBY', KEYS[1] .. 'used:' .. key, 'requests', cost)
end
if parallel then
  hold(server, lease, name, own)
end
return {'', whole(reset), left}
"""
# server, µs of a window, then of each charge: number, key, requests, prompt's and completion's tokens, day, month
_CHARGE = _NOW + """
local charged = KEYS[1] .. 'charged:' .. ARGV[1]
local last = tonumber(redis.call('GET', charged) or '0')

local function add(used, field, amount)
  if redis.call('HINCRBY', used, field, amount) < 0 then
    redis.call('HSET', used, field, 0)
  end
end

local function spend(name, amount, days)
  redis.call('INCRBY', name, amount)
  redis.call('EXPIRE', name, days * 86400)
end

for at = 3, #ARGV, 7 do
  if tonumber(ARGV[at]) > last then
    last = tonumber(ARGV[at])
    local key, tokens = ARGV[at + 1], ARGV[at + 3] + ARGV[at + 4]
    for n, field in ipairs({'requests', 'prompt_tokens', 'completion_tokens'}) do
      if tonumber(ARGV[at + 1 + n]) ~= 0 then
        add(KEYS[1] .. 'used:' .. key, field, ARGV[at + 1 + n])
      end
    end
    if tokens > 0 then
      spend(KEYS[1] .. 'spent:' .. key .. ':' .. ARGV[at + 5], whole(tokens), 3)
      spend(KEYS[1] .. 'spent:' .. key .. ':' .. ARGV[at + 6], whole(tokens), 34)
      local uses = KEYS[1] .. 'tokens:' .. key
      redis.call('ZADD', uses, whole(now), ARGV[1] .. '/' .. ARGV[at] .. ':' .. whole(tokens))
      redis.call('ZREMRANGEBYSCORE', uses, '-inf', whole(now - ARGV[2]))
      redis.call('PEXPIRE', uses, whole(ARGV[2] / 1000))
    end
  end
end
redis.call('SET', charged, whole(last), 'EX', 864000)
"""
STEPS = {"PLACES": _PLACES, "ADMIT": _ADMIT, "CHARGE": _CHARGE}
_LEASE_MS = round(LEASE * 1000)


class Charge(msgspec.Struct, frozen=True):
    """An amount to be counted once. `number` is larger than that of any before it of the same server."""

    number: int
    key: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    day: str
    month: str


@dataclass(frozen=True)
class Verdict:
    """`refused` by the limit "tokens", "budget", "place" or "request", "" when admitted; `seconds` until there is more
    of it, `left` requests until then."""

    refused: str
    seconds: float = 0.0
    left: int = 0


class Counts:
    """One server's hand in what all count. Raises as `Link.told`."""

    def __init__(self, link: Link, window: float = 60.0) -> None:
        self._link = link
        self._window = round(window * 1e6)
        self._server = uuid.uuid4().hex

    def admit(self, request: wire.Admit, own: int, period: str) -> Verdict:
        """`own`: how many places of this name this server has with this one; `period`: of the budget, as a charge names
        it."""
        def given(limit: int | None) -> int | str:
            return "" if limit is None else limit
        budget = request.token_budget
        refused, *numbers = self._link.run(
            "ADMIT", self._server, _LEASE_MS, request.key.partition("/")[0], request.key, own,
            given(request.max_parallel), given(request.requests_per_minute), request.cost, self._window,
            given(request.tokens_per_minute), given(budget.tokens if budget else None), period)
        seconds = int(numbers[0]) / 1e6 if numbers else 0.0
        return Verdict(refused.decode(), seconds, int(numbers[1]) if len(numbers) > 1 else 0)

    def hold(self, name: str, own: int) -> None:
        """This server has so many places of this name, for LEASE seconds."""
        self._link.run("PLACES", self._server, _LEASE_MS, "one", name, own)

    def hold_all(self, own: Mapping[str, int]) -> None:
        """This server has these places, and no others, for LEASE seconds."""
        self._link.run("PLACES", self._server, _LEASE_MS, "all", *(part for pair in own.items() for part in pair))

    def charge(self, charges: Sequence[Charge]) -> None:
        """Counts those that were not counted yet."""
        parts = (part for charge in charges for part in msgspec.structs.astuple(charge))
        self._link.run("CHARGE", self._server, self._window, *parts)

    def used(self, key: str) -> wire.Usage:
        fields = wire.Usage.__struct_fields__
        with self._link.told():
            found: list[Any] = self._link.client.hmget(self._link.key(f"used:{key}"), *fields)
        return wire.Usage(**{field: int(value or 0) for field, value in zip(fields, found, strict=True)})
