-- A worker gives back entries that it fetched ahead and has not started. ARGV: consumer, then entries.
-- Returns how many went back. An entry that is no longer this consumer's, or not current, is left or dropped.
local consumer = ARGV[1]
local moved = 0
pass_memory_limit()
ready()
for at = 2, #ARGV do
  local entry = ARGV[at]
  local rows = redis.call('XPENDING', key_of(entry), GROUP, id_of(entry), id_of(entry), 1, consumer)
  local e = #rows > 0 and read(entry)
  if e then
    local current, done = standing(e.c, e.n)
    drop(e.c, e.n, entry)
    if current == entry then
      stand(e.c, e.n, add(back(entry), e), done)
      moved = moved + 1
    end
  end
end
settle()
return moved
