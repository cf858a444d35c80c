-- Entries that are no calls of ours, or whose message cannot be trusted: each goes and is counted, and none is
-- run. One that stands for an open call ends it, all its items, with the message given. Of a bundle, that call goes.
-- ARGV, 5 for each: entry, client, n or '' where it is nobody's call, digests, message.
-- Returns how many were there. Safe to repeat: what has gone is not counted again.
pass_memory_limit()
local refused = 0
for at = 1, #ARGV, 5 do
  local entry, client, n, digests, message = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local stands = standing(client, n) == entry
  local went = stands
  if is_bundled(entry) then
    if stands then drop(client, n, entry) end
  else
    redis.call('XACK', key_of(entry), GROUP, id_of(entry))
    went = redis.call('XDEL', key_of(entry), id_of(entry)) == 1
    seen[key_of(entry)] = true
  end
  if went then
    refused = refused + 1
    if stands then
      close(client, n, digests)
      tell(client, n, 'x', message)
      count('failed', 1)
    end
  end
end
count('refused', refused)
settle_bundles()
settle()
return refused
