-- The text of runs' model steps while it is written, and the marks of the runs that somebody watches.
--
-- ARGV[1]  'post', 'read', 'heads', 'watch' or 'watched'. All keys carry one hash tag.
--
-- post     KEYS[1] a run's stream · ARGV[2] the piece · ARGV[3] '1' if it begins a text · ARGV[4] for how many ms the stream
--          lives from now on · ARGV[5] how many pieces it has at most. A text that begins takes the place of the one before.
-- read     KEYS[1] a run's stream · ARGV[2] the id of the last piece that was read, or '0' · ARGV[3] how many to read at most.
--          Answers the id of the last piece, then the pieces, one a line.
-- heads    KEYS streams. Answers the ids of their last pieces, in order; '-' for a stream that has none.
-- watch    KEYS marks · ARGV[2] for how many ms they live
-- watched  KEYS[1] a mark. Answers 1 or 0.

local operation = ARGV[1]

if operation == 'post' then
    if ARGV[3] == '1' then
        redis.call('DEL', KEYS[1])
    end
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', 'piece', ARGV[2])
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return '1'
end

if operation == 'read' then
    local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
    local lines = {ARGV[2]}
    for _, entry in ipairs(entries) do
        lines[1] = entry[1]
        lines[#lines + 1] = entry[2][2]
    end
    return table.concat(lines, '\n')
end

if operation == 'heads' then
    local ids = {}
    for number, key in ipairs(KEYS) do
        local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
        ids[number] = last[1] and last[1][1] or '-'
    end
    return table.concat(ids, ' ')
end

if operation == 'watch' then
    for _, key in ipairs(KEYS) do
        redis.call('SET', key, '1', 'PX', ARGV[2])
    end
    return '1'
end

return tostring(redis.call('EXISTS', KEYS[1]))
