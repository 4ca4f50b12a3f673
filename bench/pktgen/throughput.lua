-- The highest rate at which shunt forwards requests of many UDP clients without loss, per frame size (RFC 2544,
-- section 26.1). How to wire it, what to start first and how to read the result: docs/benchmarking.md.
--
--   SHUNT_MODE=dr SHUNT_MAC=02:00:00:00:01:01 pktgen -l 0-2 -n 4 -a PORT0 -a PORT1 -- \
--       -P -m "1.0,2.1" -f bench/pktgen/throughput.lua
--
-- Port 0 sends as the clients, port 1 counts what arrives as the servers. Answers are not sent: see docs/benchmarking.md.

-- What may be set from outside.
local mode = os.getenv("SHUNT_MODE") or "fullnat" -- fullnat, nat, dr, tun
local director_mac = os.getenv("SHUNT_MAC") -- of the director's interface towards the clients; required
local client_ports = tonumber(os.getenv("SHUNT_CLIENT_PORTS") or 40) -- 251 times as many flows
local sizes = os.getenv("SHUNT_SIZES") or "64,128,256,512,1024,1280,1518" -- with the 4 bytes of the FCS
local seconds = tonumber(os.getenv("SHUNT_SECONDS") or 10) -- per trial; RFC 2544 wants 60
local loss_max = tonumber(os.getenv("SHUNT_LOSS") or 0) -- share of the frames sent: 0 is RFC 2544's throughput
local rate_max = tonumber(os.getenv("SHUNT_RATE") or 100) -- percent of the line rate to begin with
local result = os.getenv("SHUNT_RESULT") or ("pktgen-" .. mode .. ".txt")

-- As in configs/benchmark.toml.
local vips = { fullnat = "203.0.113.10", nat = "203.0.113.20", dr = "203.0.113.30", tun = "203.0.113.40" }
local service_port = 9000
-- 251 addresses, a prime: Pktgen steps address and port at once, and comes to every pair of them only if their numbers
-- have no common divisor.
local clients = { first = "198.18.0.1", last = "198.18.0.251" }
local client_port = 1024

local vip = vips[mode] or error("SHUNT_MODE: no such mode: " .. mode)
if not director_mac then error("SHUNT_MAC: the director's address towards the clients is needed") end
if client_ports % 251 == 0 then error("SHUNT_CLIENT_PORTS: no multiple of 251") end

local out = assert(io.open(result, "w"))

local function say(...)
    local line = string.format(...)
    print(line)
    out:write(line, "\n")
    out:flush()
end

local function range(set, first, last, step)
    set("0", "start", first)
    set("0", "min", first)
    set("0", "max", last)
    set("0", "inc", step)
end

local function prepare()
    pktgen.screen("off")
    pktgen.range.dst_mac("0", "start", director_mac)
    range(pktgen.range.dst_ip, vip, vip, "0.0.0.0")
    range(pktgen.range.src_ip, clients.first, clients.last, "0.0.0.1")
    range(pktgen.range.dst_port, service_port, service_port, 0)
    range(pktgen.range.src_port, client_port, client_port + client_ports - 1, 1)
    pktgen.range.ip_proto("0", "udp")
    pktgen.set("0", "count", 0)
    pktgen.set_range("0", "on")
end

-- Until Pktgen 24 the second argument is required, later it is refused.
local function frames(port, field)
    local ok, stats = pcall(pktgen.portStats, port, "port")
    if not ok then stats = pktgen.portStats(port) end
    return stats[tonumber(port)][field]
end

-- Sends for a while. Returns how many frames were sent and how many arrived.
local function trial(rate, length)
    pktgen.set("0", "rate", rate)
    pktgen.clr()
    pktgen.start("0")
    pktgen.delay(length * 1000)
    pktgen.stop("0")
    pktgen.delay(1500)
    return frames("0", "opackets"), frames("1", "ipackets")
end

-- The highest rate, in percent, that loses no more than loss_max, and what was sent per second then.
local function search()
    local low, high, best = 0, rate_max, 0
    local rate = rate_max
    while high - low > rate_max / 200 do
        local sent, arrived = trial(rate, seconds)
        local loss = sent > 0 and (sent - arrived) / sent or 1
        say("  %.4g %%: %.0f sent, %.0f arrived, %.4f %% lost", rate, sent, arrived, loss * 100)
        if loss <= loss_max then
            low, best = rate, arrived / seconds
            if rate == rate_max then break end
        else
            high = rate
        end
        rate = (low + high) / 2
    end
    return low, best
end

prepare()
say("shunt, mode %s, %d flows to %s:%d", mode, 251 * client_ports, vip, service_port)
for size in string.gmatch(sizes, "%d+") do
    range(pktgen.range.pkt_size, tonumber(size), tonumber(size), 0)
    -- Every flow is opened before anything is counted.
    trial(rate_max / 20, 3)
    local rate, per_second = search()
    say("%d bytes: %.4g %% of the line rate, %.4g Mpps", size, rate, per_second / 1e6)
end
out:close()
pktgen.quit()
