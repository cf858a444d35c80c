-- A host leaves in good order: its name goes, and what its consumers hold goes back. ARGV: host.
pass_memory_limit()
ready()
for _, name in ipairs({'hb', 'hw', 'pool'}) do redis.call('HDEL', P .. name, ARGV[1]) end
local dead = {}
for _, key in ipairs(STREAMS) do
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', key, GROUP)) do
    if host_of(row[2]) == ARGV[1] then dead[row[2]] = true end
  end
end
for consumer in pairs(dead) do take_back(consumer, {}) end
settle()
