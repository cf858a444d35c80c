-- Declare a host dead, if its counter is still the one that the observer watched stand still for a whole
-- lease. What it held goes back with the next beat of anybody. ARGV: host, counter. Returns 1 or 0.
if redis.call('HGET', P .. 'hb', ARGV[1]) ~= ARGV[2] then return 0 end
for _, name in ipairs({'hb', 'hw', 'pool'}) do redis.call('HDEL', P .. name, ARGV[1]) end
return 1
