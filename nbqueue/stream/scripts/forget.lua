-- A worker drops entries that are no calls: deleted while pending, or written by somebody else. ARGV: entries.
pass_memory_limit()
for _, entry in ipairs(ARGV) do
  redis.call('XACK', key_of(entry), GROUP, id_of(entry))
  redis.call('XDEL', key_of(entry), id_of(entry))
end
lifetimes()
return 'OK'
