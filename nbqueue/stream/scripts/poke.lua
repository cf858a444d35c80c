-- Ask a host's supervisor to publish its state now. ARGV: host.
local inbox = P .. 'h:' .. ARGV[1]
redis.call('XADD', inbox, 'MAXLEN', '~', 1000, '*', 'op', 'beat')
redis.call('EXPIRE', inbox, 60)
return 'OK'
