"""The scripts of `jobs_redis`: each one step, done whole or not at all.

A member is `owner/id`. `job:<member>` is a hash of the job's fields, besides `back`, `beat`, `lease` and `nonce`. Where
a job stands, by lanes (high, normal, callback): `queue:<lane>` by turns, `front:<lane>` by number, `delayed:<lane>` by
the time when it is due, `running:<lane>`. In queues a job is `<number>|<type>|<member>`, so that equals are in the
order of their numbers. For lists: `all`, `owner:<owner>`, `dead`, `dead:<owner>`; further `ids:<id>` (owners),
`busy:<owner>`, `expires`, `turns:<lane>` (an owner's last turn), `bell` (rung for who waits), `takes` (a worker's
last).
"""

from __future__ import annotations

_COMMON = """
local P = KEYS[1]
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(seconds) return string.format('%.6f', seconds) end
local function at(member) return P .. 'job:' .. member end
local function fields(member, ...) return redis.call('HMGET', at(member), ...) end
local function lane_of(type, priority) return type == 'callback' and 'callback' or priority end
local function queued(number, type, member) return string.format('%016d|%s|%s', number, type, member) end
local function ring()
  redis.call('LPUSH', P .. 'bell', '1')
  redis.call('LTRIM', P .. 'bell', 0, 99)
end

-- Owners take turns (start-time fair queueing), see jobs_sqlite.
local function to_queue(owner, lane, name, later)
  local queue, turns = P .. 'queue:' .. lane, P .. 'turns:' .. lane
  local head, turn = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES'), 0
  if #head == 0 then
    redis.call('DEL', turns)
  else
    turn = tonumber(head[2]) + later
    local last = redis.call('HGET', turns, owner)
    if last and tonumber(last) >= turn then turn = tonumber(last) + 1 end
  end
  redis.call('HSET', turns, owner, turn)
  redis.call('ZADD', queue, turn, name)
end

local function enqueue(owner, id, type, priority, total, payload, callback, nonce, fence)
  local member, lane = owner .. '/' .. id, lane_of(type, priority)
  local number, created = redis.call('INCR', P .. 'number'), text(clock())
  redis.call('HSET', at(member), 'owner', owner, 'id', id, 'type', type, 'priority', priority, 'state', 'pending',
    'number', number, 'created', created, 'attempts', 0, 'fence', fence, 'chunks_done', 0, 'chunks_total', total,
    'payload', payload, 'beat', 0, 'lease', '0', 'nonce', nonce)
  if callback ~= '' then redis.call('HSET', at(member), 'callback', callback) end
  to_queue(owner, lane, queued(number, type, member), 0)
  redis.call('SADD', P .. 'ids:' .. id, owner)
  if lane ~= 'callback' then
    redis.call('ZADD', P .. 'all', number, member)
    redis.call('ZADD', P .. 'owner:' .. owner, number, member)
    redis.call('SADD', P .. 'busy:' .. owner, member)
  end
  ring()
  return {number, created}
end

local function forget(member, owner, id)
  for _, list in ipairs({'all', 'dead', 'expires', 'owner:' .. owner, 'dead:' .. owner}) do
    redis.call('ZREM', P .. list, member)
  end
  redis.call('SREM', P .. 'ids:' .. id, owner)
  redis.call('DEL', at(member))
end

local function mine(member, fence)
  local found = fields(member, 'state', 'fence')
  return found[1] == 'running' and found[2] == fence
end

-- To the front, or with `back` to where a new job would come: a turn later, since its number is old.
local function ready(member)
  local found = fields(member, 'number', 'type', 'priority', 'owner', 'back')
  local lane, name = lane_of(found[2], found[3]), queued(found[1], found[2], member)
  if found[5] == '1' then
    to_queue(found[4], lane, name, 1)
  else
    redis.call('ZADD', P .. 'front:' .. lane, found[1], name)
  end
end

local function give_back(member, delay, counted, back)
  local found = fields(member, 'number', 'type', 'priority')
  local lane = lane_of(found[2], found[3])
  redis.call('SREM', P .. 'running:' .. lane, member)
  redis.call('HSET', at(member), 'state', 'pending', 'chunks_done', 0, 'back', back)
  if counted ~= '1' then redis.call('HINCRBY', at(member), 'attempts', -1) end
  if tonumber(delay) > 0 then
    redis.call('ZADD', P .. 'delayed:' .. lane, text(clock() + tonumber(delay)), queued(found[1], found[2], member))
  else
    ready(member)
    ring()
  end
end

-- kept: seconds until it goes. told, notice: id and payload of the job that tells its callback.
local function finish(member, state, result, code, kept, told, notice)
  local found = fields(member, 'number', 'type', 'priority', 'owner', 'callback')
  local lane, now = lane_of(found[2], found[3]), clock()
  local name = queued(found[1], found[2], member)
  for _, place in ipairs({'queue:', 'front:', 'delayed:'}) do redis.call('ZREM', P .. place .. lane, name) end
  redis.call('SREM', P .. 'running:' .. lane, member)
  redis.call('SREM', P .. 'busy:' .. found[4], member)
  redis.call('HSET', at(member), 'state', state, 'end', text(now), 'expires', text(now + tonumber(kept)))
  if result ~= '' then redis.call('HSET', at(member), 'result', result) end
  if code ~= '' then redis.call('HSET', at(member), 'code', code) end
  redis.call('ZADD', P .. 'expires', text(now + tonumber(kept)), member)
  if state == 'error' and lane ~= 'callback' then
    redis.call('ZADD', P .. 'dead', found[1], member)
    redis.call('ZADD', P .. 'dead:' .. found[4], found[1], member)
  end
  if state ~= 'cancelled' and found[5] then
    enqueue(found[4], told, 'callback', 'normal', 0, notice, '', '', 0)
  end
  return {text(now), text(now + tonumber(kept))}
end
"""

PUT = _COMMON + """
local owner, id, type, priority, total, payload, callback, nonce, fence, most = unpack(ARGV)
local member = owner .. '/' .. id
local known = fields(member, 'nonce', 'number', 'created', 'state', 'fence')
if known[1] == nonce then return {known[2], known[3]} end
if fence == '0' then
  if known[1] then return 'exists' end
elseif known[4] ~= 'error' or known[5] ~= fence then     -- it takes the place of a failed one
  return 'other'
end
if redis.call('SCARD', P .. 'busy:' .. owner) >= tonumber(most) then return 'many' end
if known[1] then forget(member, owner, id) end
return enqueue(owner, id, type, priority, total, payload, callback, nonce, fence)
"""

TAKE = _COMMON + """
local worker, lease, longest, nonce = unpack(ARGV, 1, 4)
local known = redis.call('HGET', P .. 'takes', worker)
if known and string.sub(known, 1, #nonce) == nonce then      -- asked again, since the reply was lost
  local member = string.sub(known, #nonce + 2)
  if fields(member, 'state')[1] == 'running' then return redis.call('HGETALL', at(member)) end
end
local wanted, lanes = {}, {}
for n = 5, #ARGV do
  wanted[ARGV[n]] = true
  if ARGV[n] ~= 'callback' then lanes = {'high', 'normal'} end
end
if wanted['callback'] then lanes[#lanes + 1] = 'callback' end
local now = clock()
for _, lane in ipairs(lanes) do
  local delayed = P .. 'delayed:' .. lane
  for _, range in ipairs({{'-inf', text(now)}, {text(now + tonumber(longest)), '+inf'}}) do
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', delayed, range[1], range[2])) do
      redis.call('ZREM', delayed, name)
      ready(string.match(name, '^%d+|[^|]*|(.*)$'))
    end
  end
end
local function first(queue)
  local from = 0
  while true do
    local names = redis.call('ZRANGE', queue, from, from + 49)
    if #names == 0 then return nil end
    for _, name in ipairs(names) do
      local type, member = string.match(name, '^%d+|([^|]*)|(.*)$')
      if wanted[type] then
        redis.call('ZREM', queue, name)
        return member
      end
    end
    from = from + 50
  end
end
for _, place in ipairs({'front:', 'queue:'}) do
  for _, lane in ipairs(lanes) do
    local member = first(P .. place .. lane)
    if member then
      redis.call('SADD', P .. 'running:' .. lane, member)
      redis.call('HSET', at(member), 'state', 'running', 'start', text(now), 'worker', worker, 'beat', 0,
        'lease', lease, 'chunks_done', 0)
      redis.call('HINCRBY', at(member), 'attempts', 1)
      redis.call('HINCRBY', at(member), 'fence', 1)
      redis.call('HSET', P .. 'takes', worker, nonce .. ' ' .. member)
      return redis.call('HGETALL', at(member))
    end
  end
end
return false
"""

RENEW = _COMMON + """
local member, fence, lease, done, total = unpack(ARGV)
if not mine(member, fence) then return 0 end
redis.call('HINCRBY', at(member), 'beat', 1)
redis.call('HSET', at(member), 'lease', lease, 'chunks_done', done, 'chunks_total', total)
return 1
"""

FINISH = _COMMON + """
local member, fence, state, result, code, kept, told, notice = unpack(ARGV)
if mine(member, fence) then return finish(member, state, result, code, kept, told, notice) end
local known = fields(member, 'state', 'fence', 'end', 'expires')
if known[1] == state and known[2] == fence then return {known[3], known[4]} end
return false
"""

CANCEL = _COMMON + """
local member, kept = unpack(ARGV)
local state = fields(member, 'state')[1]
if state == 'pending' or state == 'running' then finish(member, 'cancelled', '', '', kept, '', '') end
return redis.call('HGETALL', at(member))
"""

RELEASE = _COMMON + """
local member, fence, delay, counted, back = unpack(ARGV)
if not mine(member, fence) then return 0 end
give_back(member, delay, counted, back)
return 1
"""

LOSE = _COMMON + """
local member, fence, beat, most, result, code, kept, told, notice = unpack(ARGV)
if not mine(member, fence) or fields(member, 'beat')[1] ~= beat then return 0 end
if tonumber(fields(member, 'attempts')[1]) < tonumber(most) then
  give_back(member, '0', '1', '0')
else
  finish(member, 'error', result, code, kept, told, notice)
end
return 1
"""

CALLBACK = _COMMON + """
local member, fence, state, callback = unpack(ARGV)
local known = fields(member, 'fence', 'state')
if known[1] == fence and known[2] == state then redis.call('HSET', at(member), 'callback', callback) end
return 1
"""

SWEEP = _COMMON + """
local now = ARGV[1] ~= '' and ARGV[1] or text(clock())
local gone = redis.call('ZRANGEBYSCORE', P .. 'expires', '-inf', now, 'LIMIT', 0, 500)
for _, member in ipairs(gone) do
  local found = fields(member, 'owner', 'id')
  if found[1] then
    forget(member, found[1], found[2])
  else
    redis.call('ZREM', P .. 'expires', member)
  end
end
return #gone
"""
