-- Take calls, each once: a call at or below the client's mark was taken before, and may have ended since.
-- ARGV: client, epoch,
--       number of blobs, then (digest, bytes) each,
--       number of needed digests, then each,
--       number of calls, then (n, digests, items, first item, stream, payload, needs) each, n rising; the stream is '0'
--       for a call that goes first, '1' for any other, '2' for one that can wait; needs are the names of open calls
--       whose values it is to be given, separated by blanks. Of a bundle, n has the names of its calls, rising, separated
--       by commas, and items are 0.
-- Returns {'OK', mark, workers}, {'EPOCH'} (the server lost this client's record: say hello first),
-- {'NEED', digest...} (blobs that the server no longer has; nothing was taken) or {'ENDED', n...} (needed calls that
-- are not open any more, what they gave is in the client's replies; nothing was taken).
local client, epoch = ARGV[1], ARGV[2]
local key = P .. 'c:' .. client
local record = redis.call('HMGET', key, 'epoch', 'mark')
if record[1] ~= epoch then return {'EPOCH'} end
local at = 3
local function take()
  local value = ARGV[at]
  at = at + 1
  return value
end
for _ = 1, tonumber(take()) do
  local digest, bytes = take(), take()
  if redis.call('HSETNX', P .. 'f:' .. digest, 'b', bytes) == 1 then
    redis.call('EXPIRE', P .. 'f:' .. digest, BLOB_IDLE_S)
  end
end
local missing = {'NEED'}
for _ = 1, tonumber(take()) do
  local digest = take()
  if redis.call('HEXISTS', P .. 'f:' .. digest, 'b') == 0 then missing[#missing + 1] = digest end
end
if #missing > 1 then return missing end
local mark = tonumber(record[2])
local newest
local ended = {'ENDED'}
for call = at + 1, #ARGV, 7 do
  local needs = ARGV[call + 6]
  if needs ~= '' and tonumber(ARGV[call]) > mark then
    for need in string.gmatch(needs, '%d+') do
      -- One above the mark comes with this very step.
      if tonumber(need) <= mark and not standing(client, need) then ended[#ended + 1] = need end
    end
  end
end
if #ended > 1 then return ended end
for _ = 1, tonumber(take()) do
  local n, digests, items, first, stream = take(), take(), take(), take(), take()
  local payload, needs = take(), take()
  if items == '0' then
    local names = {}
    for name in string.gmatch(n, '%d+') do
      if tonumber(name) > mark then
        mark, newest = tonumber(name), name
        names[#names + 1] = name
      end
    end
    if #names > 0 then
      add_together(stream, {c = client, d = digests, s = '1 0 0 -1', p = payload}, names)
      hold(digests, #names)
    end
  elseif tonumber(n) > mark then
    mark, newest = tonumber(n), n
    local e = {c = client, n = n, d = digests, i = items, s = '1 0 ' .. first .. ' -1', p = payload, t = stream}
    if needs == '' then stand(client, n, add(stream, e), first) else wait(e, needs, first) end
    hold(digests, 1)
  end
end
if newest then
  redis.call('HSET', key, 'mark', newest)
  redis.call('PERSIST', key)
  redis.call('PERSIST', P .. 'r:' .. client)
else
  idle[client] = true
end
settle()
return {'OK', mark, workers()}
