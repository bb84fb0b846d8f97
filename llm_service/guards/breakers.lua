-- The shared state of circuit breakers: one hash, with a field for each breaker that was ever opened.
-- KEYS[1] the hash; then the locks of probes. Times in milliseconds, by Redis' clock.
--   sync  owner, count, {name, state, open_ms, why, tries, age_ms, seen}…, token…
--         store these changes, and release the locks of these probes (the n-th token's lock is the n-th key after the
--         hash); answer with all fields and the time
--   probe token, lifetime_ms    take the lock of a breaker's probe (KEYS[2]); answer "1", or "0" if it is taken
--   free  token                 release that lock, if this token still holds it
--
-- A field is JSON {state, until_ms, at_ms, why, tries, owner, version}. A change is based on the version that its sender
-- has `seen` ("" for none; "*" for a change by hand, which always counts). If another process stored a change in between,
-- the one that is open for longer wins: open wins while its time lasts, and closed wins after that.
-- Versions are text, because a number of more than 14 digits would not survive cjson. They contain the time, so that no
-- version is used again after Redis was flushed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kind = ARGV[1]

local function give_back(lock, token)
    if redis.call('GET', lock) == token then redis.call('DEL', lock) end
end

if kind == 'probe' then
    return redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) and '1' or '0'
end
if kind == 'free' then
    give_back(KEYS[2], ARGV[2])
    return '1'
end

local function time_left(state, until_ms)
    return state == 'open' and math.max(until_ms - now, 0) or 0
end

local last = 3 + 7 * tonumber(ARGV[3])
for i = 4, last, 7 do
    local name, state, why, seen = ARGV[i], ARGV[i + 1], ARGV[i + 3], ARGV[i + 6]
    local until_ms = now + tonumber(ARGV[i + 2])
    local text = redis.call('HGET', KEYS[1], name)
    local stored = text and cjson.decode(text)
    local left = time_left(state, until_ms)
    local stored_left = stored and time_left(stored.state, stored.until_ms) or 0
    if not stored or seen == '*' or seen == stored.version or stored.owner == ARGV[2]
        or left > stored_left or (state == 'closed' and stored_left == 0) then
        local version = time[1] .. '.' .. time[2] .. '.' .. redis.call('HINCRBY', KEYS[1], '#version', 1)
        redis.call('HSET', KEYS[1], name, cjson.encode({
            state = state, until_ms = until_ms, at_ms = now - tonumber(ARGV[i + 5]), why = why,
            tries = tonumber(ARGV[i + 4]), owner = ARGV[2], version = version}))
    end
end
for i = last + 1, #ARGV do
    give_back(KEYS[1 + i - last], ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], 86400000)
local fields = redis.call('HGETALL', KEYS[1])
local states = {}
for i = 1, #fields, 2 do
    if fields[i] ~= '#version' then states[fields[i]] = cjson.decode(fields[i + 1]) end
end
return cjson.encode({now_ms = now, states = states})
