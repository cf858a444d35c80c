-- Put before every script. KEYS[1] is the queue's prefix; every other key is made from it and so lies on
-- the same slot. keys.py has the table of keys.
--
-- An *entry* is written "<stream>/<id>", for example "1/1700000000000-0". The hash o:<client> maps an open
-- call to "<current entry>|<items done>"; while a retry waits, the entry is "z/<attempt>".
local P = KEYS[1]
local GROUP = 'w'
local IDLE_S = 604800
local BLOB_IDLE_S = 3600
local FIRST, NORMAL = P .. 's:0', P .. 's:1'
local STATE = '^(%d+) (-?%d+) (%d+) (-?%d+)$'

-- The streams and their group. Each step that needs both makes them, since a server may have lost its data.
local function ready()
  redis.pcall('XGROUP', 'CREATE', FIRST, GROUP, '0', 'MKSTREAM')
  redis.pcall('XGROUP', 'CREATE', NORMAL, GROUP, '0', 'MKSTREAM')
end

-- A server that is out of memory refuses writes that grow, unless the script has already made one that does
-- not. This one changes nothing, so that running work can still finish.
local function pass_memory_limit()
  redis.call('XACK', NORMAL, GROUP, '0-1')
end

local function key_of(entry) return P .. 's:' .. string.sub(entry, 1, 1) end
local function id_of(entry) return string.sub(entry, 3) end

-- Where a call stands: its current entry and how many of its items are done; nil when it is not open.
local function standing(client, n)
  local value = redis.call('HGET', P .. 'o:' .. client, n)
  if not value then return nil end
  local entry, done = string.match(value, '^([^|]+)|(%d+)$')
  return entry, tonumber(done)
end

local function stand(client, n, entry, done)
  redis.call('HSET', P .. 'o:' .. client, n, entry .. '|' .. done)
end

-- Fields of an entry: c client, n call, d digests, i items, s state, p payload; nil for one that we did not write.
local function read(entry)
  local rows = redis.call('XRANGE', key_of(entry), id_of(entry), id_of(entry))
  if #rows == 0 then return nil end
  local f = rows[1][2]
  if #f ~= 12 or not string.match(f[8], '^%d+$') or not string.match(f[10], STATE) then return nil end
  return {c = f[2], n = f[4], d = f[6], i = f[8], s = f[10], p = f[12]}
end

-- What was parked for a retry; nil for what we did not park, or where nothing is.
local function unpark(parked)
  local _, v = pcall(cmsgpack.unpack, parked)
  if type(v) ~= 'table' then return nil end
  for at = 1, 6 do
    if type(v[at]) ~= 'string' then return nil end
  end
  return {c = v[1], n = v[2], d = v[3], i = v[4], s = v[5], p = v[6]}
end

-- The host that a consumer belongs to; '' for one that is nobody's.
local function host_of(consumer) return string.match(consumer, '^[^:]*') end

local function add(stream, e)
  local id = redis.call('XADD', P .. 's:' .. stream, '*',
    'c', e.c, 'n', e.n, 'd', e.d, 'i', e.i, 's', e.s, 'p', e.p)
  return stream .. '/' .. id
end

-- XACK before XDEL: the other way round leaves a pending entry without content.
local function drop(client, n, entry)
  if string.sub(entry, 1, 1) == 'z' then
    local member = client .. ' ' .. n
    redis.call('ZREM', P .. 'z', member)
    redis.call('HDEL', P .. 'zp', member)
  else
    redis.call('XACK', key_of(entry), GROUP, id_of(entry))
    redis.call('XDEL', key_of(entry), id_of(entry))
  end
end

local function hold(digests)
  for digest in string.gmatch(digests, '%S+') do
    if redis.call('HINCRBY', P .. 'f:' .. digest, 'refs', 1) == 1 then
      redis.call('PERSIST', P .. 'f:' .. digest)
    end
  end
end

local function let_go(digests)
  for digest in string.gmatch(digests, '%S+') do
    if redis.call('HINCRBY', P .. 'f:' .. digest, 'refs', -1) <= 0 then
      redis.call('EXPIRE', P .. 'f:' .. digest, BLOB_IDLE_S)
    end
  end
end

-- A call has ended: forget it, and let its client's keys die if it was the last.
local function close(client, n, digests)
  redis.call('HDEL', P .. 'o:' .. client, n)
  let_go(digests)
  if redis.call('EXISTS', P .. 'o:' .. client) == 0 then
    redis.call('EXPIRE', P .. 'c:' .. client, IDLE_S)
  end
end

local function tell(client, n, kind, body)
  redis.call('XADD', P .. 'r:' .. client, '*', 'n', n, 'k', kind, 'p', body)
  redis.call('EXPIRE', P .. 'r:' .. client, IDLE_S)
end

local function count(name, by)
  if by ~= 0 then
    redis.call('HINCRBY', P .. 'n', name, by)
    redis.call('EXPIRE', P .. 'n', IDLE_S)
  end
end

-- Streams live while they hold calls, and for a while after.
local function lifetimes()
  for _, key in ipairs({FIRST, NORMAL}) do
    if redis.call('XLEN', key) > 0 then redis.call('PERSIST', key) else redis.call('EXPIRE', key, IDLE_S) end
  end
end

local function workers()
  local sum = 0
  for _, n in ipairs(redis.call('HVALS', P .. 'hw')) do sum = sum + (tonumber(n) or 0) end
  return sum
end

-- Everything pending for a consumer goes back to be run, and the consumer goes, in one step: deleting a
-- consumer drops its pending list. The entry `running` (or '') is charged a crash at `item`; over `cap` that
-- item ends with `reply`, a sealed message made by the supervisor, and the rest of its chunk goes on.
-- State of an entry: "<attempt> <crashes> <first item> <charged item>"; crashes -1 means that the charged
-- item has ended and is to be skipped.
local function take_back(consumer, running, item, cap, reply)
  local moved, ended = 0, 0
  for stream = 0, 1 do
    local key = P .. 's:' .. stream
    while true do
      local pending = redis.call('XPENDING', key, GROUP, '-', '+', 200, consumer)
      if #pending == 0 then break end
      for _, row in ipairs(pending) do
        local entry = stream .. '/' .. row[1]
        local e = read(entry)
        if not e then
          redis.call('XACK', key, GROUP, row[1])
          redis.call('XDEL', key, row[1])
        else
          local current, done = standing(e.c, e.n)
          drop(e.c, e.n, entry)
          if current == entry then
            local attempt, crashes, _, charged = string.match(e.s, STATE)
            crashes, charged = tonumber(crashes), tonumber(charged)
            -- An item below `done` was reported before its worker died, and one that has ended was not begun
            -- (it seems to run while the function is loaded): nobody is to blame.
            if entry == running and item >= done and not (charged == item and crashes < 0) then
              attempt = attempt + 1
              if charged == item then crashes = crashes + 1 else crashes = 1 end
              charged = item
              if crashes > cap then
                tell(e.c, e.n, 'r', reply)
                count('failed', 1)
                ended = ended + 1
                if item == done then
                  done = done + 1
                  crashes, charged = 0, -1
                else
                  crashes = -1
                end
              end
            end
            if done >= tonumber(e.i) then
              close(e.c, e.n, e.d)
            else
              e.s = attempt .. ' ' .. crashes .. ' ' .. done .. ' ' .. charged
              stand(e.c, e.n, add(0, e), done)
              moved = moved + 1
            end
          end
        end
      end
    end
    redis.call('XGROUP', 'DELCONSUMER', key, GROUP, consumer)
  end
  return moved, ended
end
