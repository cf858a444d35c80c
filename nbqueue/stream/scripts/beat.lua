-- One heartbeat of a host: raise its counter, publish its state, give back what dead consumers hold, move
-- due retries into the stream.
-- ARGV: host, workers, state, epoch as register gave it or '' to skip the check, then its living consumers.
-- Returns {'FORGOT'} when the server has lost its data (register again, nothing is stranded), {'FENCED'} when others have declared this host dead (kill the workers, register under a new
-- name), else {'OK', ms until the next delayed retry or -1, host, counter, host, counter, ...}.
local host = ARGV[1]
if ARGV[4] ~= '' and redis.call('GET', P .. 'e') ~= ARGV[4] then return {'FORGOT'} end
if redis.call('HEXISTS', P .. 'hb', host) == 0 then return {'FENCED'} end
pass_memory_limit()
ready()
redis.call('HINCRBY', P .. 'hb', host, 1)
redis.call('HSET', P .. 'hw', host, ARGV[2])
redis.call('HSET', P .. 'pool', host, ARGV[3])
for _, name in ipairs({'hb', 'hw', 'pool', 'e'}) do redis.call('EXPIRE', P .. name, IDLE_S) end

local living = {}
for at = 5, #ARGV do living[ARGV[at]] = true end
local dead = {}
for _, key in ipairs(STREAMS) do
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', key, GROUP)) do
    local consumer = row[2]
    local owner = host_of(consumer)
    if not living[consumer] and (owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0) then
      dead[consumer] = true
    end
  end
end
for consumer in pairs(dead) do take_back(consumer, {}) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'z', '-inf', now, 'LIMIT', 0, 500)) do
  local parked = redis.call('HGET', P .. 'zp', member)
  redis.call('ZREM', P .. 'z', member)
  redis.call('HDEL', P .. 'zp', member)
  local e = unpark(parked)
  if e then
    stand(e.c, e.n, add(e.t, e), 0)
  end
end
local next_due = redis.call('ZRANGEBYSCORE', P .. 'z', '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local out = {'OK', next_due[2] and math.max(0, next_due[2] - now) or -1}
for _, value in ipairs(redis.call('HGETALL', P .. 'hb')) do out[#out + 1] = value end
settle()
return out
