-- One request for wrk, from the environment: a key as a real client sends it, and a body with its type if there is one.
local key = os.getenv("BENCH_KEY")
if key and key ~= "" then
  wrk.headers["Authorization"] = "Bearer " .. key
end
local kind = os.getenv("BENCH_TYPE")
if kind and kind ~= "" then
  wrk.headers["Content-Type"] = kind
end
local path = os.getenv("BENCH_BODY")
if path and path ~= "" then
  local file = assert(io.open(path, "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
end
