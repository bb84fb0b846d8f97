-- Takes from every limit that applies to one call, or from none; or gives back and corrects.
--
-- KEYS[i]  one key for each limit and metric; all carry one hash tag
-- ARGV[1]  'acquire' or 'release'
-- ARGV[2]  call id: the member of the sets of calls in flight
-- ARGV[3]  acquire: how long the call's slot lives, in ms
--          release: the expiry that its acquire answered, in ms; '' removes the slot whatever its expiry
-- ARGV[4]  for each key "metric limit amount": metric is requests, tokens or concurrent; amount is what
--          to take, or by how much to correct (negative gives back). One argument, since each costs the caller 1 µs
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

local charges = {}
for metric, limit, amount in string.gmatch(ARGV[4], '(%a+) (%d+) (-?%d+)') do
    charges[#charges + 1] = {
        key = KEYS[#charges + 1], limit = tonumber(limit), amount = tonumber(amount), slots = metric == 'concurrent',
    }
end

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
    for _, charge in ipairs(charges) do
        if charge.slots then
            vacate(charge.key)
        else
            local used = bucket_level(charge.key, charge.limit) + charge.amount * UNIT
            store(charge.key, math.min(used, 2 * charge.limit * UNIT), charge.limit)
        end
    end
    return '1'
end

local levels, admitted = {}, true
for i, charge in ipairs(charges) do
    if charge.slots then
        levels[i] = others_in_flight(charge.key)
        admitted = admitted and levels[i] + charge.amount <= charge.limit
    else
        levels[i] = bucket_level(charge.key, charge.limit)
        admitted = admitted and levels[i] + charge.amount * UNIT <= charge.limit * UNIT
    end
end

local answer = {admitted and '1' or '0', string.format('%.0f', now)}
for i, charge in ipairs(charges) do
    if admitted and charge.slots then
        levels[i] = levels[i] + charge.amount
        occupy(charge.key, tonumber(ARGV[3]))
    elseif admitted then
        levels[i] = levels[i] + charge.amount * UNIT
        store(charge.key, levels[i], charge.limit)
    end
    answer[i + 2] = string.format('%.0f', levels[i])
end
return table.concat(answer, ' ')
