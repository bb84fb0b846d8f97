-- The shared state of circuit breakers: one hash, a field for each that is not closed (or was, a while ago).
-- KEYS[1] the hash; KEYS[2], for a probe, its lock. Times in milliseconds, by Redis' clock.
--   sync  {name, state, open_ms, why, tries}…   write these changes; answer with all fields and the time
--   probe token, lifetime_ms                    take a breaker's one probe; answer "1", or "0": it is taken
--   free  token                                 give the probe back, if it is still ours
-- A field is JSON {state, until_ms, why, tries, version}; the version rises with each change of any breaker.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kind = ARGV[1]
if kind == 'probe' then
    return redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) and '1' or '0'
end
if kind == 'free' then
    if redis.call('GET', KEYS[2]) == ARGV[2] then
        redis.call('DEL', KEYS[2])
    end
    return '1'
end
for i = 2, #ARGV, 5 do
    local version = redis.call('HINCRBY', KEYS[1], '#version', 1)
    redis.call('HSET', KEYS[1], ARGV[i], cjson.encode({
        state = ARGV[i + 1], until_ms = now + tonumber(ARGV[i + 2]), why = ARGV[i + 3], tries = tonumber(ARGV[i + 4]),
        version = version}))
end
redis.call('PEXPIRE', KEYS[1], 86400000)
local fields = redis.call('HGETALL', KEYS[1])
local states = {}
for i = 1, #fields, 2 do
    if fields[i] ~= '#version' then
        states[fields[i]] = cjson.decode(fields[i + 1])
    end
end
return cjson.encode({now_ms = now, states = states})
