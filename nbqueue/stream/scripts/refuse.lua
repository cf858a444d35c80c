-- Entries that are no calls of ours, or whose message cannot be trusted: each goes and is counted, and none is
-- run. One that stands for an open call ends it, all its items, with the message given.
-- ARGV, 5 for each: entry, client, n or '' where it is nobody's call, digests, message.
-- Returns how many were there. Safe to repeat: what has gone is not counted again.
pass_memory_limit()
local refused = 0
for at = 1, #ARGV, 5 do
  local entry, client, n, digests, message = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  redis.call('XACK', key_of(entry), GROUP, id_of(entry))
  seen[key_of(entry)] = true
  if redis.call('XDEL', key_of(entry), id_of(entry)) == 1 then
    refused = refused + 1
    if standing(client, n) == entry then
      close(client, n, digests)
      tell(client, n, 'x', message)
      count('failed', 1)
    end
  end
end
count('refused', refused)
settle()
return refused
