"""Lua: what runs inside Redis.

Per quota and key there is a LIST of whole numbers, the stamps, in microseconds of the server's own
TIME: the newest at the head. A stamp counts while ``now - stamp < window``. ``cost`` fits if the
stamp at index ``limit - cost`` is missing or does not count: then at most ``limit - cost`` do. So a
denial reads two elements and writes nothing.

*Time.* ``clock`` is what TIME said; ``now`` is that, or the newest stamp if the clock went back.
Waiting times are told from ``clock``: that is what the caller's time goes along with.

*Leases.* Units that are lent stand in the list ahead of time, at the moment the lease ends, and as
negative numbers. At any instant every unit that was used within the last window has a stamp in the
list that counts, as a lease is used up before its stamp; and at most ``limit`` stamps count. So
there is never one unit too many. The list stays in order of the amounts, and whatever is counted
while a lease is ahead is put behind it. Such a stamp does not move ``now``: it is no time that
was. So while the newest stamp is a lease's, a clock that goes back is followed: what is counted
then leaves the window earlier, by as much as the clock went back.

*Expiry.* A list has to live until its newest stamp is out. It may live up to an eighth of a window
longer, so that the expiry is written only when the newest stamp comes into the next eighth. Then
the stamps at the far end that no longer count are dropped too, at least half of them, so that a
list holds little more than what counts. Where it comes to be longer than the limit by a sixteenth,
it is cut to the limit: whatever was just allowed, the stamps beyond it don't count.

ARGV is the same for all: the cost, and for each quota its window, its limit and ``limit - cost``.
The number of ``redis.call``s decides what a script costs, and numbers are slower to hand over than
texts.

The scripts are put together from pieces, once, when this module is imported.
"""

from __future__ import annotations

__all__ = ["BATCH", "GRANT", "LOOK", "RESET", "RETURN", "TAKE", "TAKE_ONE", "TAKE_SOME", "TELL"]

#: LPUSH takes so many at once: Lua's stack has room for 8,000 values.
PUSHED_AT_ONCE = 4_000

#: LINSERT walks past all that is lent each time: so many units behind it go one by one. For more,
#: what is ahead is lifted and put down again.
INSERTED_ONE_BY_ONE = 8

#: What BATCH says of a longer wait: Lua prints 14 digits.
MOST_BATCH_WAIT_US = 10**14 - 1

_CLOCK = """
local call = redis.call
local time = call('TIME')
local clock = time[1] * 1000000 + time[2]
"""


# head: the newest stamp as a number without its sign, or nil.
_NOW = """
  local head, now = call('LINDEX', key, '0'), clock
  if head then
    head = tonumber(head)
    if head > clock then now = head elseif head < 0 then head = -head end
  end
"""

# Put `units` stamps into a list: sign * stamp, which is not before `now`.
_COUNT = f"""
local function push(command, key, value, units)
  if units == 1 then return call(command, key, value) end
  local values, length = {{}}, 0
  for i = 1, math.min(units, {PUSHED_AT_ONCE}) do values[i] = value end
  for left = units, 1, -{PUSHED_AT_ONCE} do
    length = call(command, key, unpack(values, 1, math.min(left, {PUSHED_AT_ONCE})))
  end
  return length
end
local function count(key, head, now, stamp, sign, units, window, limit)
  if units < 1 then return end
  window, limit = tonumber(window), tonumber(limit)
  local length
  local value = string.format('%.0f', sign * stamp)
  if not head or head <= stamp then
    length = push('LPUSH', key, value, units)
    local step = math.max(1, math.floor(window / 8000))
    local due = math.ceil((stamp + window) / (1000 * step))
    if not head or due > math.ceil((head + window) / (1000 * step)) then
      call('PEXPIREAT', key, due * step)
      if length > 16 then
        local dead, probe = 0, 1
        while probe < length and now - math.abs(call('LINDEX', key, -probe)) >= window do
          dead, probe = probe, 2 * probe
        end
        if dead > 0 then
          call('LTRIM', key, 0, -1 - dead)
          length = length - dead
        end
      end
    end
  else
    local ahead, behind = 0, 1
    local pivot = call('LINDEX', key, 1)
    while pivot and math.abs(pivot) > stamp do
      ahead, behind = behind, 2 * behind
      pivot = call('LINDEX', key, behind)
    end
    while behind - ahead > 1 do
      local middle = math.floor((ahead + behind) / 2)
      local found = call('LINDEX', key, middle)
      if found and math.abs(found) > stamp then
        ahead = middle
      else
        behind, pivot = middle, found
      end
    end
    if not pivot then
      length = push('RPUSH', key, value, units)
    elseif units <= {INSERTED_ONE_BY_ONE} then
      for _ = 1, units do length = call('LINSERT', key, 'BEFORE', pivot, value) end
    else
      local lifted = call('LRANGE', key, 0, ahead)
      call('LTRIM', key, behind, -1)
      length = push('LPUSH', key, value, units)
      for last = behind, 1, -{PUSHED_AT_ONCE} do
        local values = {{}}
        for i = last, math.max(1, last - {PUSHED_AT_ONCE} + 1), -1 do
          values[#values + 1] = lifted[i]
        end
        length = call('LPUSH', key, unpack(values))
      end
    end
  end
  if length > limit + math.min(1024, math.floor(limit / 16)) then
    call('LTRIM', key, 0, limit - 1)
  end
end
"""

# Of one key with `quotas` lists, the first of them KEYS[first]: how long until `units` fit, 0 if
# they did and were counted. Microseconds, from `clock`.
_TAKE = f"""
local heads, nows = {{}}, {{}}
local function take(first, quotas, units)
  local wait = 0
  for i = 1, quotas do
    local key, at = KEYS[first + i - 1], 3 * i - 1
    {_NOW}
    if head then
      heads[i], nows[i] = head, now
      local last = call('LINDEX', key, ARGV[at + 2])
      if last then
        local out = math.abs(last) + ARGV[at]
        if out > now and out - clock > wait then wait = out - clock end
      end
    else
      heads[i], nows[i] = false, clock
    end
  end
  if wait > 0 then return wait end
  for i = 1, quotas do
    local at = 3 * i - 1
    count(KEYS[first + i - 1], heads[i], nows[i], nows[i], 1, units, ARGV[at], ARGV[at + 1])
  end
  return 0
end
"""

# One quota is what most limiters have: without functions and tables, until it is counted.
TAKE_ONE = f"""
local key = KEYS[1]
{_CLOCK}
{_NOW}
if head then
  local last = call('LINDEX', key, ARGV[4])
  if last then
    local out = math.abs(last) + ARGV[2]
    if out > now then return out - clock end
  end
end
{_COUNT}
count(key, head, now, now, 1, tonumber(ARGV[1]), ARGV[2], ARGV[3])
return 0
"""

TAKE = f"""
{_CLOCK}
{_COUNT}
{_TAKE}
return take(1, #KEYS, tonumber(ARGV[1]))
"""

# `take` for one quota and one unit, in little more than half of the time: what is the same for all
# keys is made once, and where the newest stamp lies in the same eighth, nothing else is written
# than the new one. A lease ahead, and a clock that went back, are left to `take`.
_TAKE_QUICKLY = """
local window, limit, index = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local stamp, longest = string.format('%.0f', clock), limit + math.min(1024, math.floor(limit / 16))
local eighth = 1000 * math.max(1, math.floor(window / 8000))
local due = math.ceil((clock + window) / eighth)
local expiry, earlier = string.format('%.0f', due * eighth / 1000), (due - 1) * eighth - window
local tonumber, abs = tonumber, math.abs
local function take_quickly(first)
  local key = KEYS[first]
  local head = call('LINDEX', key, '0')
  if not head then
    call('LPUSH', key, stamp)
    call('PEXPIREAT', key, expiry)
    return 0
  end
  head = tonumber(head)
  if head < 0 or head > clock then return take(first, 1, 1) end
  local last = call('LINDEX', key, index)
  if last then
    local wait = abs(last) + window - clock
    if wait > 0 then return wait end
  end
  if head <= earlier then
    count(key, head, clock, clock, 1, 1, window, limit)
  elseif call('LPUSH', key, stamp) > longest then
    call('LTRIM', key, 0, limit - 1)
  end
  return 0
end
"""

# Waits in a text with spaces between them: clients read that faster than so many integers.
# What is wrong with one key, such as a value of another type, leaves the others alone: its wait is
# -1, and the error stands at the end. What is wrong with the server, it says at the first write,
# and that is the reply, with its code in front (were it raised anew, that would be "ERR"); nothing
# was counted then.
BATCH = f"""
{_CLOCK}
{_COUNT}
{_TAKE}
{_TAKE_QUICKLY}
local quotas, units, waits = (#ARGV - 1) / 3, tonumber(ARGV[1]), {{}}
local which = quotas == 1 and units == 1 and take_quickly or take
local counted, why = false, ''
for first = 1, #KEYS, quotas do
  local done, wait = pcall(which, first, quotas, units)
  if not done then
    local text = type(wait) == 'table' and wait.err or wait
    if not counted and not string.find(text, 'WRONGTYPE', 1, true) then
      if string.find(text, '^%u+ ') then return redis.error_reply(text .. ' (in user_script)') end
      error(wait, 0)
    end
    wait, why = -1, ' !' .. text
  elseif wait == 0 then
    counted, wait = true, '0'
  else
    wait = math.min(wait, {MOST_BATCH_WAIT_US})
  end
  waits[#waits + 1] = wait
end
return table.concat(waits, ' ') .. why
"""

# Per quota: how many count, the newest, the oldest that counts, and the one that must leave before
# `units` fit; 0 where there is none. The count is searched for between what is known.
_VIEW = f"""
local units, views, fits = tonumber(ARGV[1]), {{clock}}, true
local heads, nows = {{}}, {{}}
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i - 1
  local window = tonumber(ARGV[at])
  {_NOW}
  heads[i], nows[i] = head, now
  local used, oldest, deciding = 0, 0, 0
  if head and now - head < window then
    local low, high = 1, call('LLEN', key) + 1
    oldest = head
    local last = units > 0 and call('LINDEX', key, ARGV[at + 2])
    if last then
      last = math.abs(last)
      local nth = ARGV[at + 2] + 1
      if now - last < window then
        deciding, fits, low, oldest = last, false, nth, last
      else
        high = nth
      end
    end
    if high - low > 1 then
      local found = math.abs(call('LINDEX', key, high - 2))
      if now - found < window then low, oldest = high - 1, found else high = high - 1 end
    end
    while high - low > 1 do
      local middle = math.floor((low + high) / 2)
      local found = math.abs(call('LINDEX', key, middle - 1))
      if now - found < window then low, oldest = middle, found else high = middle end
    end
    used = low
  end
  local view = 4 * i - 2
  views[view], views[view + 1], views[view + 2], views[view + 3] = used, head or 0, oldest, deciding
end
"""

LOOK = f"""
{_CLOCK}
{_VIEW}
return views
"""

TELL = f"""
{_CLOCK}
{_VIEW}
if fits and units > 0 then
  {_COUNT}
  for i = 1, #KEYS do
    local at, view, now = 3 * i - 1, 4 * i - 2, nows[i]
    count(KEYS[i], heads[i], now, now, 1, units, ARGV[at], ARGV[at + 1])
    views[view] = views[view] + units
    views[view + 1] = math.max(views[view + 1], now)
    views[view + 2] = views[view + 2] > 0 and math.min(views[view + 2], now) or now
  end
end
return views
"""

# How many of `units` requests of one unit each fit: `room`, the least of all quotas. `limit - n` is
# the index of the stamp that must not count for n to fit.
_ROOM = f"""
local units = tonumber(ARGV[1])
local room = units
local heads, nows, rooms, outs = {{}}, {{}}, {{}}, {{}}
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i - 1
  local window, limit = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  {_NOW}
  local low, high, out = 0, math.min(units, limit) + 1, math.huge
  local nth = high - 1
  while high - low > 1 do
    local found = head and call('LINDEX', key, limit - nth)
    found = found and math.abs(found) + window
    if found and found > now then high, out = nth, found else low = nth end
    nth = low == 0 and 1 or math.floor((low + high) / 2)
  end
  heads[i], nows[i], rooms[i], outs[i] = head, now, low, out
  room = math.min(room, low)
end
"""

# Count them, at `stamps`. `wait`: until one more fits, 0 if all did. That is when the first stamp
# leaves: it may be one that was just counted, where a lease is ahead.
_COUNT_ROOM = f"""
local wait = 0
if room > 0 then
  {_COUNT}
  for i = 1, #KEYS do
    local at = 3 * i - 1
    count(KEYS[i], heads[i], nows[i], stamps[i], sign, room, ARGV[at], ARGV[at + 1])
    outs[i] = math.min(outs[i], stamps[i] + ARGV[at])
  end
end
if room < units then
  for i = 1, #KEYS do
    if rooms[i] == room then wait = math.max(wait, outs[i] - clock) end
  end
end
"""

TAKE_SOME = f"""
{_CLOCK}
{_ROOM}
local stamps, sign = nows, 1
{_COUNT_ROOM}
return {{room, wait}}
"""

# The last of ARGV: for how many microseconds. The lease ends at one moment for all quotas, and not
# before now has got as far, where the clock went back.
GRANT = f"""
{_CLOCK}
{_ROOM}
local ends, stamps, sign = 0, {{}}, -1
for i = 1, #KEYS do ends = math.max(ends, nows[i]) end
ends = ends + ARGV[#ARGV]
for i = 1, #KEYS do stamps[i] = ends end
{_COUNT_ROOM}
return {{room, wait, room > 0 and ends or 0}}
"""

# ARGV: how many, and the stamp. What is not there any more is not missed.
RETURN = """
local found = 0
for i = 1, #KEYS do
  found = math.max(found, redis.call('LREM', KEYS[i], ARGV[1], ARGV[2]))
end
return found
"""

# Was there a log with a stamp that counts? It is gone then, in any case.
RESET = f"""
{_CLOCK}
local live = 0
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i - 1
  {_NOW}
  if head then
    if now - head < tonumber(ARGV[at]) then live = 1 end
    call('UNLINK', key)
  end
end
return live
"""
