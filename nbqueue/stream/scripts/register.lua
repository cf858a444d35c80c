-- A host (one supervisor, one pool) joins under a name that nobody had before. ARGV: host, workers, state.
ready()
redis.call('HSET', P .. 'hb', ARGV[1], 0)
redis.call('HSET', P .. 'hw', ARGV[1], ARGV[2])
redis.call('HSET', P .. 'pool', ARGV[1], ARGV[3])
for _, name in ipairs({'hb', 'hw', 'pool'}) do redis.call('EXPIRE', P .. name, IDLE_S) end
lifetimes()
return 'OK'
