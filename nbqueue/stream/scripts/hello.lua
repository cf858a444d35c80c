-- A client (re)connects: make its record if the server has none; say where it stands.
-- ARGV: client, a random epoch to use if the record is new. Returns epoch, mark, workers.
local client, fresh = ARGV[1], ARGV[2]
local key = P .. 'c:' .. client
-- A client must be able to come back to a full server: reading its replies is what makes room.
pass_memory_limit()
ready()
if redis.call('HSETNX', key, 'epoch', fresh) == 1 then redis.call('HSET', key, 'mark', 0) end
idle[client] = true
settle()
local record = redis.call('HMGET', key, 'epoch', 'mark')
return {record[1], tonumber(record[2]), workers()}
