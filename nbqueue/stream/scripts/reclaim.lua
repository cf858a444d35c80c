-- A worker died. What it had fetched goes back to be run; what it was running is charged a crash, and over
-- the cap ends with the reply given. ARGV: consumer, then for each entry that was running: entry, item, cap, reply.
-- Returns calls moved, items ended. Safe to repeat: the consumer is gone after the first time.
pass_memory_limit()
ready()
local charges = {}
for at = 2, #ARGV, 4 do
  charges[ARGV[at]] = {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]}
end
local moved, ended = take_back(ARGV[1], charges)
settle()
return {moved, ended}
