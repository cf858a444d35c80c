-- End calls as cancelled, queued, waiting or running alike, and those that need what they give. A running one is
-- forgotten at once; its host is told, so that it stops the work. ARGV: client, then call names. Returns the names
-- that were still open.
local client = ARGV[1]
local out = {}
pass_memory_limit()
for at = 2, #ARGV do
  local n = ARGV[at]
  local current = standing(client, n)
  if current then
    local digests = ''
    if is_parked(current) then
      local e = unpark(redis.call('HGET', P .. 'zp', client .. ' ' .. n))
      if e then digests = e.d end
    else
      local e = read(current)
      if e then digests = e.d end
      local ok, rows = pcall(redis.call, 'XPENDING', key_of(current), GROUP, id_of(current), id_of(current), 1)
      if ok and #rows > 0 then
        local consumer = rows[1][2]
        local inbox = P .. 'h:' .. host_of(consumer)
        redis.call('XADD', inbox, 'MAXLEN', '~', 1000, '*', 'op', 'cancel', 'entry', current, 'consumer', consumer)
        redis.call('EXPIRE', inbox, 60)
      end
    end
    drop(client, n, current)
    close(client, n, digests)
    out[#out + 1] = n
  end
end
count('cancelled', #out)
settle_bundles()
settle()
return out
