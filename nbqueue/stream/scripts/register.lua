-- A host (one supervisor, one pool) joins, under a name that nobody had before, or again after the server
-- has lost its data. ARGV: host, workers, state, a random epoch to use if the server has none.
-- Returns the epoch of the server's memory of this queue.
-- A full server must be able to get workers: they are what empties it.
pass_memory_limit()
ready()
redis.call('HSET', P .. 'hb', ARGV[1], 0)
redis.call('HSET', P .. 'hw', ARGV[1], ARGV[2])
redis.call('HSET', P .. 'pool', ARGV[1], ARGV[3])
redis.call('SETNX', P .. 'e', ARGV[4])
for _, name in ipairs({'hb', 'hw', 'pool', 'e'}) do redis.call('EXPIRE', P .. name, IDLE_S) end
settle()
return redis.call('GET', P .. 'e')
