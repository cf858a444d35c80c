-- A worker gives back entries that it fetched ahead and has not started. ARGV: consumer, then entries; of a bundle, its
-- own, or that of the first of its calls that goes back: all that were made after it go.
-- Returns how many calls went back. An entry that is no longer this consumer's, or not current, is left or dropped. The
-- calls of a bundle go back one by one, so that none waits again for another.
local consumer = ARGV[1]
local moved = 0
pass_memory_limit()
ready()
for at = 2, #ARGV do
  local entry = ARGV[at]
  local rows = redis.call('XPENDING', key_of(entry), GROUP, id_of(entry), id_of(entry), 1, consumer)
  local e = #rows > 0 and read(entry)
  if e and e.i == '0' then
    local bundle = string.sub(entry, 1, 1) .. '*' .. id_of(entry)
    local from = string.match(entry, '%+(%d+)$')
    for _, name in ipairs(standing_in(e, bundle)) do
      if not from or tonumber(name) >= tonumber(from) then
        drop(e.c, name, bundle .. '+' .. name)
        add_together(back(entry), e, {name})
        moved = moved + 1
      end
    end
  elseif e then
    local current, done = standing(e.c, e.n)
    drop(e.c, e.n, entry)
    if current == entry then
      stand(e.c, e.n, add(back(entry), e), done)
      moved = moved + 1
    end
  end
end
settle_bundles()
settle()
return moved
