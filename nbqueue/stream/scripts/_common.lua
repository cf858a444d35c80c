-- What stands before every script, with those functions that it needs: each calls only others before it, and is on one
-- line or ends with an "end" at the margin. KEYS[1] is the queue's prefix; every other key is made from it and so lies
-- on the same slot. keys.py has the table of keys.
--
-- An *entry* is written "<stream>/<id>", for example "1/1700000000000-0". The hash o:<client> maps an open
-- call to "<current entry>|<items done>"; while a retry waits, the entry is "z/<attempt>", and while a call waits for
-- what others give, "w/<how many of them are open>".
-- A *bundle* is an entry that holds several calls of one item each, and names them: "17,18,19". Each has a place of its
-- own in o:<client>, "<stream>*<id>+<call>|0", and may leave on its own; the entry goes with the last that stands there.
local P = KEYS[1]
local GROUP = 'w'
-- Strings, since a number would be printed for each command.
local IDLE_S, BLOB_IDLE_S, VALUE_IDLE_S = '604800', '3600', '300'
local FIRST, NORMAL, LOW = P .. 's:0', P .. 's:1', P .. 's:2'
local STREAMS = {FIRST, NORMAL, LOW}
local STATE = '^(%d+) (-?%d+) (%d+) (-?%d+)$'

-- What a script does for each call and need write only once: `settle` does, at the end of every script.
-- References to each blob that came (or went: negative), changes of each counter, clients that may have no open
-- call left, streams that were looked at, or into which something was 'put', and how many calls have left each bundle.
local refs, counted, idle, seen, left = {}, {}, {}, {}, {}

-- The streams and their group. Each step that needs both makes them, since a server may have lost its data.
local function ready()
  for _, key in ipairs(STREAMS) do
    redis.pcall('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    seen[key] = true
  end
end

-- A server that is out of memory refuses writes that grow, unless the script has already made one that does
-- not. This one changes nothing, so that running work can still finish.
local function pass_memory_limit()
  redis.call('XACK', NORMAL, GROUP, '0-1')
end

-- Where the value of a call lies that others need: a blob under this name.
local function value_of(client, n) return P .. 'f:v' .. client .. '.' .. n end

local function key_of(entry) return P .. 's:' .. string.sub(entry, 1, 1) end
local function id_of(entry) return string.match(entry, '^..([^+]*)') end

-- Whether a call lies in a bundle.
local function is_bundled(entry) return string.sub(entry, 2, 2) == '*' end

-- The stream where a call goes that was fetched and is to be fetched again: first, unless it is low and so stays low.
local function back(entry) return string.sub(entry, 1, 1) == '2' and '2' or '0' end

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

-- Fields of an entry: c client, n call, d digests, i items, s state, p payload; nil for one that we did not write. A
-- bundle has 0 items, and in n the calls that it was made with.
local function read(entry)
  local rows = redis.call('XRANGE', key_of(entry), id_of(entry), id_of(entry))
  if #rows == 0 then return nil end
  local f = rows[1][2]
  if #f ~= 12 or not string.match(f[8], '^%d+$') or not string.match(f[10], STATE) then return nil end
  if f[8] == '0' and (#f[4] > 1000 or not string.match(f[4], '^%d[%d,]*$')) then return nil end
  return {c = f[2], n = f[4], d = f[6], i = f[8], s = f[10], p = f[12]}
end

-- Whether a call lies in no stream: it waits for its retry, or for what others give.
local function is_parked(entry) return string.find(entry, '^[zw]') end

-- Field t is the stream that it goes to.
local function park(e, due)
  local member = e.c .. ' ' .. e.n
  redis.call('ZADD', P .. 'z', due, member)
  redis.call('HSET', P .. 'zp', member, cmsgpack.pack({e.c, e.n, e.d, e.i, e.s, e.p, e.t}))
end

-- What was parked; nil for what we did not park, or where nothing is.
local function unpark(parked)
  local _, v = pcall(cmsgpack.unpack, parked)
  if type(v) ~= 'table' then return nil end
  for at = 1, 7 do
    if type(v[at]) ~= 'string' then return nil end
  end
  if not string.match(v[7], '^[012]$') then return nil end
  return {c = v[1], n = v[2], d = v[3], i = v[4], s = v[5], p = v[6], t = v[7]}
end

-- The host that a consumer belongs to; '' for one that is nobody's.
local function host_of(consumer) return string.match(consumer, '^[^:]*') end

local function add(stream, e)
  local key = P .. 's:' .. stream
  local id = redis.call('XADD', key, '*', 'c', e.c, 'n', e.n, 'd', e.d, 'i', e.i, 's', e.s, 'p', e.p)
  seen[key] = 'put'
  return stream .. '/' .. id
end

-- XACK before XDEL: the other way round leaves a pending entry without content.
local function remove(entry)
  redis.call('XACK', key_of(entry), GROUP, id_of(entry))
  redis.call('XDEL', key_of(entry), id_of(entry))
  seen[key_of(entry)] = true
end

-- Of a bundle, only this call goes: `settle_bundles` sees to the rest.
local function drop(client, n, entry)
  if is_parked(entry) then
    local member = client .. ' ' .. n
    redis.call('ZREM', P .. 'z', member)
    redis.call('HDEL', P .. 'zp', member)
  elseif is_bundled(entry) then
    local bundle = string.match(entry, '^[^+]*')
    left[bundle] = (left[bundle] or 0) + 1
  else
    remove(entry)
  end
end

-- One more call needs these blobs, or, by -1, one less.
local function hold(digests, by)
  for digest in string.gmatch(digests, '%S+') do refs[digest] = (refs[digest] or 0) + by end
end

local function tell(client, n, kind, body)
  redis.call('XADD', P .. 'r:' .. client, '*', 'n', n, 'k', kind, 'p', body)
end

local function count(name, by)
  if by ~= 0 then counted[name] = (counted[name] or 0) + by end
end

-- Put calls of one item into one entry. They have what `e` has but for the names.
local function add_together(stream, e, names)
  e.n, e.i = table.concat(names, ','), '0'
  local bundle = stream .. '*' .. id_of(add(stream, e)) .. '+'
  local places = {}
  for _, name in ipairs(names) do
    places[#places + 1] = name
    places[#places + 1] = bundle .. name .. '|0'
  end
  redis.call('HSET', P .. 'o:' .. e.c, unpack(places))
  count('bundled', #names - 1)
end

-- The calls of a bundle that stand there.
local function standing_in(e, bundle)
  local names, there = {}, {}
  for name in string.gmatch(e.n, '%d+') do names[#names + 1] = name end
  local places = redis.call('HMGET', P .. 'o:' .. e.c, unpack(names))
  for at, name in ipairs(names) do
    if places[at] == bundle .. '+' .. name .. '|0' then there[#there + 1] = name end
  end
  return there
end

-- A call that needs what others give is never due: the end of the last of those brings it to the stream.
local function wait(e, needs, done)
  local open = 0
  for need in string.gmatch(needs, '%d+') do
    redis.call('HSET', value_of(e.c, need), e.n, '')
    open = open + 1
  end
  park(e, '+inf')
  stand(e.c, e.n, 'w/' .. open, done)
end

-- Whether any call waits for others. It is asked once in a step, since no step that ends calls makes one wait.
local some_wait
local function do_some_wait()
  if some_wait == nil then some_wait = redis.call('EXISTS', P .. 'z') == 1 end
  return some_wait
end

-- The calls that wait for what call n gives, which has ended. It is theirs if it is a `value`, and else they end:
-- returns the name and the digests of each that does.
local function pass_on(client, n, value)
  local key = value_of(client, n)
  local ended = {}
  local found
  -- Beside the blob's own, there is a field for each of them.
  local fields = redis.call('HGETALL', key)
  for at = 1, #fields, 2 do
    local name = fields[at]
    local entry, done = standing(client, name)
    if entry and string.sub(entry, 1, 1) == 'w' then
      found = true
      local open = tonumber(id_of(entry)) - 1
      if value and open > 0 then
        stand(client, name, 'w/' .. open, done)
      else
        local e = unpark(redis.call('HGET', P .. 'zp', client .. ' ' .. name))
        drop(client, name, entry)
        if not value then
          -- At once: it may need another that ends with this one.
          redis.call('HDEL', P .. 'o:' .. client, name)
          ended[#ended + 1] = {name, e and e.d or ''}
        elseif e then
          stand(client, name, add(e.t, e), done)
        end
      end
    end
  end
  if value and found then redis.call('HSET', key, 'b', value) end
  return ended
end

-- A call has ended: forget it, and let its client's keys die if it was the last. Without a `value`, what waits for it
-- ends with it, and what waits for that.
local function close(client, n, digests, value)
  redis.call('HDEL', P .. 'o:' .. client, n)
  hold(digests, -1)
  if do_some_wait() then
    local ended = pass_on(client, n, value)
    local at = 1
    while ended[at] do
      hold(ended[at][2], -1)
      for _, waiting in ipairs(pass_on(client, ended[at][1])) do ended[#ended + 1] = waiting end
      at = at + 1
    end
    count('cancelled', #ended)
  end
  idle[client] = true
end

-- Bundles that calls have left: one goes when none is there any more. Every step that drops calls ends with this, and
-- with `settle`.
local function settle_bundles()
  for bundle, number in pairs(left) do
    local e = read(bundle)
    local there = e and #standing_in(e, bundle) or 0
    if there == 0 then
      remove(bundle)
      number = number - 1
    end
    count('bundled', -number)
  end
end

-- Write what has come together. What is needed lives, what is not dies after a while.
local function settle()
  for digest, by in pairs(refs) do
    local key = P .. 'f:' .. digest
    local now = redis.call('HINCRBY', key, 'refs', by)
    if now <= 0 then
      redis.call('EXPIRE', key, string.sub(digest, 1, 1) == 'v' and VALUE_IDLE_S or BLOB_IDLE_S)
    elseif now == by then
      redis.call('PERSIST', key)
    end
  end
  for client in pairs(idle) do
    if redis.call('EXISTS', P .. 'o:' .. client) == 0 then
      -- In this order: where replies are gone that nobody has read, so is the record, and all is sent again.
      redis.call('EXPIRE', P .. 'c:' .. client, IDLE_S)
      redis.call('EXPIRE', P .. 'r:' .. client, IDLE_S)
    end
  end
  for name, by in pairs(counted) do redis.call('HINCRBY', P .. 'n', name, by) end
  if next(counted) then
    -- Calls that lie together may do so for a month, and each that leaves is taken off their number.
    if (tonumber(redis.call('HGET', P .. 'n', 'bundled')) or 0) > 0 then
      redis.call('PERSIST', P .. 'n')
    else
      redis.call('EXPIRE', P .. 'n', IDLE_S)
    end
  end
  for key, how in pairs(seen) do
    if how == 'put' or redis.call('XLEN', key) > 0 then
      redis.call('PERSIST', key)
    else
      redis.call('EXPIRE', key, IDLE_S)
    end
  end
end

local function workers()
  local sum = 0
  for _, n in ipairs(redis.call('HVALS', P .. 'hw')) do sum = sum + (tonumber(n) or 0) end
  return sum
end

-- A call of a bundle was running when its worker died: it goes back alone, or ends. Returns calls moved, items ended.
local function charge(e, name, stream, cap, reply)
  local attempt, crashes = string.match(e.s, STATE)
  crashes = crashes + 1
  if crashes > cap then
    tell(e.c, name, 'r', reply)
    count('failed', 1)
    close(e.c, name, e.d)
    return 0, 1
  end
  local state = attempt + 1 .. ' ' .. crashes .. ' 0 0'
  add_together(stream, {c = e.c, d = e.d, s = state, p = e.p}, {name})
  return 1, 0
end

-- The same for a whole bundle, which is pending no more. What was not running stays together.
local function take_back_bundle(e, entry, charges)
  local bundle = string.sub(entry, 1, 1) .. '*' .. id_of(entry)
  local rest = {}
  local moved, ended = 0, 0
  local names = standing_in(e, bundle)
  for _, name in ipairs(names) do
    local given = charges[bundle .. '+' .. name]
    if given then
      local back_again, over = charge(e, name, back(entry), given[2], given[3])
      moved, ended = moved + back_again, ended + over
    else
      rest[#rest + 1] = name
    end
  end
  if #names > 0 then count('bundled', 1 - #names) end
  if #rest > 0 then add_together(back(entry), e, rest) end
  return moved + #rest, ended
end

-- Everything pending for a consumer goes back to be run, and the consumer goes, in one step: deleting a
-- consumer drops its pending list. `charges` maps an entry that was running to {item, cap, reply}: it is charged a
-- crash at `item`; over `cap` that item ends with `reply`, a sealed message made by the supervisor, and the rest of
-- its chunk goes on.
-- State of an entry: "<attempt> <crashes> <first item> <charged item>"; crashes -1 means that the charged
-- item has ended and is to be skipped.
local function take_back(consumer, charges)
  local moved, ended = 0, 0
  for stream = 0, 2 do
    local key = P .. 's:' .. stream
    while true do
      local pending = redis.call('XPENDING', key, GROUP, '-', '+', 200, consumer)
      if #pending == 0 then break end
      for _, row in ipairs(pending) do
        local entry = stream .. '/' .. row[1]
        local e = read(entry)
        remove(entry)
        if e and e.i == '0' then
          local back_again, over = take_back_bundle(e, entry, charges)
          moved, ended = moved + back_again, ended + over
        elseif e then
          local current, done = standing(e.c, e.n)
          if current == entry then
            local attempt, crashes, _, charged = string.match(e.s, STATE)
            crashes, charged = tonumber(crashes), tonumber(charged)
            -- An item below `done` was reported before its worker died, and one that has ended was not begun
            -- (it seems to run while the function is loaded): nobody is to blame.
            local item, cap, reply = unpack(charges[entry] or {})
            if item and item >= done and not (charged == item and crashes < 0) then
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
              stand(e.c, e.n, add(back(entry), e), done)
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
