-- One request for wrk; with BENCH_DUE, the second since 1970 at which it is due as a job.
local key, due = os.getenv("BENCH_KEY"), tonumber(os.getenv("BENCH_DUE") or "")
wrk.headers["Authorization"] = "Bearer " .. key
if due then
  wrk.method = "POST"
  wrk.headers["Prefer"] = "respond-async"
  request = function()
    wrk.headers["x-sandpiper-delay"] = tostring(math.max(0, due - os.time())) .. "s"
    return wrk.format()
  end
end
