-- Takes a call's share of every limit that applies to it, or of none; or releases the share and corrects it.
--
-- KEYS[i]  one key for each limit and metric; then, if slots are concerned, the hash of this process's slots, and the
--          set of all processes. All keys carry one hash tag
-- ARGV[1]  'acquire' or 'release'; 'beat' or 'leave' of the process
-- ARGV[2]  call id, the member of the sets of calls in flight. Of a beat: '1' if it may release slots of dead processes
-- ARGV[3]  acquire: how long the call's slot lives, in ms
--          release: the expiry of the slot, which follows from the acquire's answer, in ms; '' removes any
-- ARGV[4]  for each key "metric limit amount": metric is requests, tokens or concurrent; amount is what
--          to take, or by how much to correct (negative gives back). One argument, since each costs the caller 1 µs
-- ARGV[5]  acquire, beat: after how long without a beat a process is dead, in ms
--
-- A process that dies leaves its slots behind. So each process has a hash of the slots that it holds: call → expiry and
-- the sets with its slots, which stays right if limits are changed in between. And each process sends beats. When a process
-- has sent none for too long, the next beat of any other process releases its slots.
--
-- A bucket is "used at": what is used, in 1/60000ths of a request or token, at a time in ms. It drains
-- by `limit` of these units each ms, which makes the limit in a minute. So every number is an integer
-- below 2^53 and exact. It expires when it would be empty. local_rates.py and token_bucket.py calculate the same.
--
-- acquire answers "admitted now orphans level level …": levels after the take, or unchanged if refused. orphans is 0,
-- except if dead processes hold all slots that a refused call needs: then it is in how many ms they are released.
-- beat answers how many slots of dead processes it has released.

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

local held, processes = KEYS[#charges + 1], KEYS[#charges + 2]

local function bucket_level(key, limit)
    local value = redis.call('GET', key)
    if not value then return 0 end
    local used, at = string.match(value, '^(%d+) (%d+)$')
    -- If the clock went back (a failover), nothing drains. After a limit was lowered, the bucket is empty within a
    -- minute.
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

local function live_for(key, lifetime)
    if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, string.format('%.0f', lifetime)) end
end

local function occupy(key, lifetime)
    redis.call('ZADD', key, string.format('%.0f', now + lifetime), call)
    live_for(key, lifetime)
end

-- Remember in which sets the call has slots. An earlier attempt of the call may have slots in other sets.
local function note(keys, lifetime)
    local _, _, earlier = string.find(redis.call('HGET', held, call) or '', '^%d+(.*)$')
    redis.call('HSET', held, call, string.format('%.0f', now + lifetime) .. (earlier or '') .. keys)
    live_for(held, lifetime)
    redis.call('ZADD', processes, 'NX', string.format('%.0f', now), held)
    live_for(processes, lifetime)
end

local function forget()
    local expiry = string.match(redis.call('HGET', held, call) or '', '^%d+')
    if expiry and (ARGV[3] == '' or expiry == ARGV[3]) then redis.call('HDEL', held, call) end
end

local function give_back(of)
    local count, entries = 0, redis.call('HGETALL', of)
    for i = 1, #entries, 2 do
        for key in string.gmatch(entries[i + 1], '\n([^\n]+)') do
            count = count + redis.call('ZREM', key, entries[i])
        end
    end
    redis.call('DEL', of)
    redis.call('ZREM', processes, of)
    return count
end

-- In how many ms the set's slots are released, if all of them are held by processes without a recent beat; else 0.
local function orphaned_for(key, level, dead)
    local orphans, wait = 0, 0
    local silent = redis.call('ZRANGEBYSCORE', processes, '-inf', now - dead / 2, 'WITHSCORES')
    for i = 1, #silent, 2 do
        for _, entry in ipairs(redis.call('HVALS', silent[i])) do
            if string.find(entry .. '\n', '\n' .. key .. '\n', 1, true) then orphans = orphans + 1 end
        end
        wait = math.max(wait, tonumber(silent[i + 1]) + dead + dead / 4 - now)
    end
    return orphans >= level and wait or 0
end

if ARGV[1] == 'beat' then
    local dead, count = tonumber(ARGV[5]), 0
    redis.call('ZADD', processes, string.format('%.0f', now), held)
    live_for(processes, 10 * dead)
    if ARGV[2] == '1' then
        for _, of in ipairs(redis.call('ZRANGEBYSCORE', processes, '-inf', now - dead)) do
            count = count + give_back(of)
        end
    end
    return tostring(count)
end

if ARGV[1] == 'leave' then
    return tostring(give_back(held))
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
    if held then forget() end
    return '1'
end

local levels, admitted, orphans = {}, true, 0
for i, charge in ipairs(charges) do
    if charge.slots then
        levels[i] = others_in_flight(charge.key)
        admitted = admitted and levels[i] + charge.amount <= charge.limit
    else
        levels[i] = bucket_level(charge.key, charge.limit)
        admitted = admitted and levels[i] + charge.amount * UNIT <= charge.limit * UNIT
    end
end

if not admitted then
    for i, charge in ipairs(charges) do
        if charge.slots and levels[i] + charge.amount > charge.limit then
            orphans = math.max(orphans, orphaned_for(charge.key, levels[i], tonumber(ARGV[5])))
        end
    end
end

local answer = {admitted and '1' or '0', string.format('%.0f', now), string.format('%.0f', orphans)}
local taken = ''
for i, charge in ipairs(charges) do
    if admitted and charge.slots then
        levels[i] = levels[i] + charge.amount
        occupy(charge.key, tonumber(ARGV[3]))
        taken = taken .. '\n' .. charge.key
    elseif admitted then
        levels[i] = levels[i] + charge.amount * UNIT
        store(charge.key, levels[i], charge.limit)
    end
    answer[i + 3] = string.format('%.0f', levels[i])
end
if taken ~= '' then note(taken, tonumber(ARGV[3])) end
return table.concat(answer, ' ')
