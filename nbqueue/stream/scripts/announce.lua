-- Tell a client something about a call that is still open under this entry. ARGV: client, n, entry, message.
-- Returns 1 or 0. Nothing depends on its arrival.
local current = standing(ARGV[1], ARGV[2])
if current ~= ARGV[3] then return 0 end
tell(ARGV[1], ARGV[2], 'e', ARGV[4])
return 1
