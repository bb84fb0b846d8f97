-- Takes from every limit that applies to one call, or from none; or gives back and corrects.
--
-- KEYS[i]             one key for each limit and metric; all carry one hash tag
-- ARGV[1]             'acquire' or 'release'
-- ARGV[2]             call id: the member of the sets of calls in flight
-- ARGV[3]             acquire: how long the call's slot lives, in ms
--                     release: the expiry that its acquire answered, in ms; '' removes the slot whatever its expiry
-- ARGV[3i + 1 .. + 3] metric ('requests', 'tokens', 'concurrent'), the limit, and the amount:
--                     what to take, or by how much to correct (negative gives back)
--
-- A bucket is "used at": what is used, in 1/60000ths of a request or token, at a time in ms. It drains
-- by `limit` of these units each ms, which is the limit each minute, so every number is an integer
-- below 2^53 and exact. It expires when it would be empty. local.py and pace.py do the same sums.
--
-- acquire answers "admitted now level level …": levels after the take, or unchanged if refused.

local UNIT = 60000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local call = ARGV[2]

local function bucket_level(key, limit)
    local value = redis.call('GET', key)
    if not value then return 0 end
    local used, at = string.match(value, '^(%d+) (%d+)$')
    -- A clock that went back (a failover) drains nothing; a lowered limit leaves at most one more minute of debt.
    local elapsed = math.min(math.max(now - tonumber(at), 0), 2 * UNIT)
    return math.max(math.min(tonumber(used), 2 * limit * UNIT) - elapsed * limit, 0)
end

local function store(key, used, limit)
    if used <= 0 then
        redis.call('DEL', key)
    else
        redis.call('SET', key, string.format('%.0f %.0f', used, now), 'PX', math.ceil(used / limit))
    end
end

local function others_in_flight(key)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local count = redis.call('ZCARD', key)
    if count > 0 and redis.call('ZSCORE', key, call) then count = count - 1 end
    return count
end

local function occupy(key, lifetime)
    redis.call('ZADD', key, string.format('%.0f', now + lifetime), call)
    if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, string.format('%.0f', lifetime)) end
end

local function vacate(key)
    if ARGV[3] == '' or tonumber(redis.call('ZSCORE', key, call) or -1) == tonumber(ARGV[3]) then
        redis.call('ZREM', key, call)
    end
end

if ARGV[1] == 'release' then
    for i, key in ipairs(KEYS) do
        local limit, amount = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
        if ARGV[3 * i + 1] == 'concurrent' then
            vacate(key)
        else
            local used = bucket_level(key, limit) + amount * UNIT
            store(key, math.min(used, 2 * limit * UNIT), limit)
        end
    end
    return '1'
end

local levels, admitted = {}, true
for i, key in ipairs(KEYS) do
    local limit, amount = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
    if ARGV[3 * i + 1] == 'concurrent' then
        levels[i] = others_in_flight(key)
        admitted = admitted and levels[i] + amount <= limit
    else
        levels[i] = bucket_level(key, limit)
        admitted = admitted and levels[i] + amount * UNIT <= limit * UNIT
    end
end

local answer = {admitted and '1' or '0', string.format('%.0f', now)}
for i, key in ipairs(KEYS) do
    if admitted then
        local limit, amount = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
        if ARGV[3 * i + 1] == 'concurrent' then
            levels[i] = levels[i] + amount
            occupy(key, tonumber(ARGV[3]))
        else
            levels[i] = levels[i] + amount * UNIT
            store(key, levels[i], limit)
        end
    end
    answer[i + 2] = string.format('%.0f', levels[i])
end
return table.concat(answer, ' ')
