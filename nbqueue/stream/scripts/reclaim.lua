-- A worker died. What it had fetched goes back to be run; what it was running is charged a crash, and over
-- the cap ends with the reply given. ARGV: consumer, running entry or '', item, cap, reply.
-- Returns calls moved, items ended. Safe to repeat: the consumer is gone after the first time.
pass_memory_limit()
ready()
local moved, ended = take_back(ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5])
lifetimes()
return {moved, ended}
