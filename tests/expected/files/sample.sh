#!/bin/sh
# Rotates the logs of one directory.
set -eu

dir=${1:?usage: rotate DIRECTORY}
keep=5

for log in "$dir"/*.log; do
  [ -f "$log" ] || continue
  i=$keep
  while [ "$i" -gt 1 ]; do
    prev=$((i - 1))
    if [ -f "$log.$prev" ]; then mv "$log.$prev" "$log.$i"; fi
    i=$prev
  done
  cp "$log" "$log.1" && : > "$log"
done
echo "done"
