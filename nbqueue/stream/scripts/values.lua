-- Report calls of one item that gave values, several in one message. The first success wins, from any attempt.
-- ARGV: client, digests of each, message, then pairs of an entry and its call.
-- Calls that need one of these values are given the whole message.
-- Returns for each 'OK' or 'STALE' (it counts no more). A full server takes it: to end calls is what it writes first.
local client, digests, message = ARGV[1], ARGV[2], ARGV[3]
local key = P .. 'o:' .. client
local given, names, out, ended = {}, {}, {}, {}
for at = 5, #ARGV, 2 do given[#given + 1] = ARGV[at] end
local places = redis.call('HMGET', key, unpack(given))
for at, n in ipairs(given) do
  local current = not ended[n] and places[at] and string.match(places[at], '^([^|]+)|%d+$')
  if current then
    drop(client, n, current)
    ended[n] = true
    names[#names + 1] = n
    out[at] = 'OK'
  else
    -- Of what others have deleted, its place among the pending is left.
    local entry = ARGV[2 + 2 * at]
    if not read(entry) then remove(entry) end
    out[at] = 'STALE'
  end
end
if #names > 0 then
  redis.call('HDEL', key, unpack(names))
  hold(digests, -#names)
  if do_some_wait() then
    for _, n in ipairs(names) do pass_on(client, n, message) end
  end
  idle[client] = true
  tell(client, table.concat(names, ','), 'm', message)
  count('done', #names)
end
settle_bundles()
settle()
return out
