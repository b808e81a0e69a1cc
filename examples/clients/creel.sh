#!/bin/sh
# creeld from a shell, with curl alone. The host name in the URL means nothing.
set -eu
name=$1
api=http://creel/v1/sandboxes

# What the daemon refuses is printed, and fails.
creel() {
  curl -sS --fail-with-body --unix-socket "${CREEL_SOCKET:-/run/creel/creel.sock}" -H 'Content-Type: application/json' "$@"
}

box=$(creel -X PUT "$api/$name" -d '{"limits":{"memory":"128M","ttl":"10m"}}') || { echo "$box" >&2; exit 1; }
printf '%s\n' "$box" | grep -o '"state":"[a-z]*"'

creel "$api/$name/exec" -d '{"command":["tr","a-z","A-Z"],"input":"hello","timeout":"30s"}' |
  grep -o '"exit_code":[0-9]*\|"stdout":"[^"]*"'

printf 'a report' | creel -T - "$api/$name/files?path=/home/agent/report.txt&mode=644"
creel "$api/$name/files?path=/home/agent/report.txt" -w '\n'

creel -X DELETE "$api/$name?force=true" -w 'DELETE %{http_code}\n'
