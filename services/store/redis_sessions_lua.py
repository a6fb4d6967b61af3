"""The steps of sessions in Redis. KEYS[1] is the prefix of all names.

    owners              who has sessions
    of:<owner>          by session id: 32 digits that no other session ever had, a blank, and its entry in lists; no
                        entry for one that was made, but never used
    log:<owner>/<id>    its lines, the oldest first
    lock:<owner>/<id>   the token of who may add some; it ends by itself when its holder does not renew it
"""

from __future__ import annotations

_NAMES = """
local of, id = KEYS[1] .. 'of:' .. ARGV[1], ARGV[2]
local name = ARGV[1] .. '/' .. id
local log, lock = KEYS[1] .. 'log:' .. name, KEYS[1] .. 'lock:' .. name

local function number()
  local told = redis.call('HGET', of, id)
  return told and string.sub(told, 1, 32)
end

local function remove()
  redis.call('HDEL', of, id)
  redis.call('DEL', log, lock)
  if redis.call('EXISTS', of) == 0 then
    redis.call('SREM', KEYS[1] .. 'owners', ARGV[1])
  end
end
"""

# owner, id, number, entry, line …: 1; 0 when there is another one of this name
CREATE = _NAMES + """
local there = number()
if there then
  return there == ARGV[3] and 1 or 0
end
redis.call('SADD', KEYS[1] .. 'owners', ARGV[1])
redis.call('HSET', of, id, ARGV[3] .. ' ' .. ARGV[4])
for at = 5, #ARGV do
  redis.call('RPUSH', log, ARGV[at])
end
return 1
"""

# owner, id, token, milliseconds, number, entry and line of a new one ('': none is made): its number and its lines;
# 'busy' while another holds it, 'absent'
OPEN = _NAMES + """
local holder = redis.call('GET', lock)
if holder and holder ~= ARGV[3] then
  return 'busy'
end
if not number() then
  if ARGV[7] == '' then
    return 'absent'
  end
  redis.call('SADD', KEYS[1] .. 'owners', ARGV[1])
  redis.call('HSET', of, id, ARGV[5] .. ' ' .. ARGV[6])
  redis.call('RPUSH', log, ARGV[7])
end
redis.call('SET', lock, ARGV[3], 'PX', ARGV[4])
return {number(), redis.call('LRANGE', log, 0, -1)}
"""

# owner, id, token, milliseconds, number, entry, lines before, line: 'added'; 'gone'; 'moved' when another has taken the
# lock, which had ended. One that ended, and that nobody took, is taken again.
APPEND = _NAMES + """
if number() ~= ARGV[5] then
  return 'gone'
end
local holder, length = redis.call('GET', lock), redis.call('LLEN', log)
if holder and holder ~= ARGV[3] then
  return 'moved'
end
if length ~= tonumber(ARGV[7]) then
  return redis.call('LINDEX', log, ARGV[7]) == ARGV[8] and 'added' or 'moved'
end
redis.call('RPUSH', log, ARGV[8])
redis.call('HSET', of, id, ARGV[5] .. ' ' .. ARGV[6])
redis.call('SET', lock, ARGV[3], 'PX', ARGV[4])
return 'added'
"""

# owner, id, token: lets go of the session, and removes one that was made for its holder, who added nothing
CLOSE = _NAMES + """
if redis.call('GET', lock) == ARGV[3] then
  redis.call('DEL', lock)
  local told = redis.call('HGET', of, id)
  if told and string.len(told) == 33 then
    remove()
  end
end
"""

# owner, id: how many were removed
DELETE = _NAMES + """
local there = redis.call('HEXISTS', of, id)
remove()
return there
"""
