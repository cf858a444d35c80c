-- Report finished items. The first success wins from any attempt; a failure or a retry counts only from
-- the current one. Ack, result and counters are one step, the ack first (see pass_memory_limit).
-- ARGV, 11 for each report: entry, client, n, digests, first item, number of items, items in the call,
--   failed items, reply, retry delay in ms or '', payload of the retried item or ''.
-- With a delay, the last item of the report is to run again: a call with one item is parked as it is, or with the
-- payload given if it has lain in a bundle; an item of a chunk becomes the call "<n>.<item>" with the payload given.
-- Returns for each report 'OK' or 'STALE' (drop it, and whatever else is left of that entry).
local out = {}
local now = nil
for at = 1, #ARGV, 11 do
  local entry, client, n, digests = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local first, items, total = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local failed, reply = tonumber(ARGV[at + 7]), ARGV[at + 8]
  local delay, payload = ARGV[at + 9], ARGV[at + 10]
  local retry = delay ~= ''
  local current, done = standing(client, n)
  local upto = first + items
  -- The entry of an old attempt is gone, and so may one be that others have deleted: nothing is left to run again.
  local parked = retry and current == entry and read(entry)
  if not current or (retry and not parked) then
    -- Of what others have deleted, its place among the pending is left. What is there is another call's by now: a
    -- stream that was emptied and made anew within a millisecond gives the same name twice.
    if not read(entry) then remove(entry) end
    out[#out + 1] = 'STALE'
  elseif first > done or upto <= done or (current ~= entry and failed > 0) then
    -- Already reported (a reply was lost), or an old attempt that has no say and no entry left.
    out[#out + 1] = (current == entry and upto <= done) and 'OK' or 'STALE'
  else
    if retry then
      now = now or redis.call('TIME')
      parked.due = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(delay)
    end
    if upto < total or is_bundled(current) then pass_memory_limit() end
    if upto >= total then drop(client, n, current) end
    if retry then
      local attempt, crashes, _, charged = string.match(parked.s, STATE)
      attempt = attempt + 1
      local name = n
      if total > 1 then
        name = n .. '.' .. (upto - 1)
        parked.n, parked.i, parked.p = name, '1', payload
        -- The item's own attempts are counted from here; the chunk's were for losing its worker.
        attempt, crashes, charged = 2, 0, -1
        hold(digests, 1)
      elseif payload ~= '' then
        parked.n, parked.i, parked.p = n, '1', payload
      end
      parked.s = attempt .. ' ' .. crashes .. ' 0 ' .. charged
      parked.t = back(entry)
      park(parked, parked.due)
      stand(client, name, 'z/' .. attempt, 0)
      count('retried', 1)
    end
    if upto < total then
      stand(client, n, current, upto)
    elseif not (retry and total == 1) then
      -- Of a call with one item, this reply is what it gives.
      close(client, n, digests, failed == 0 and reply)
    end
    tell(client, n, 'r', reply)
    count('done', items - failed - (retry and 1 or 0))
    count('failed', failed)
    out[#out + 1] = 'OK'
  end
end
settle_bundles()
settle()
return out
