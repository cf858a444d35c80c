-- Ask a host's supervisor to publish its state now. ARGV: host.
-- A look at a full server must be possible: it tells what it is full of. Nobody reads this after a minute.
pass_memory_limit()
local inbox = P .. 'h:' .. ARGV[1]
redis.call('XADD', inbox, 'MAXLEN', '~', 1000, '*', 'op', 'beat')
redis.call('EXPIRE', inbox, 60)
