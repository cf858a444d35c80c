-- Make the streams and their group where they are missing. Returns the error of a user who may not.
pass_memory_limit()
for _, key in ipairs(STREAMS) do
  local made = redis.pcall('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
  seen[key] = true
  if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
end
settle()
