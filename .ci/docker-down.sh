#!/usr/bin/env bash
# Stop the engine that docker-up.sh started with this STATE_DIR, by its pid; one that ran before is left alone.
set -euo pipefail
state=${1:?usage: .ci/docker-down.sh STATE_DIR}
[ -s "$state/pid" ] || exit 0
pid=$(cat "$state/pid")
kill "$pid" 2>/dev/null || exit 0
for _ in $(seq 300); do
    kill -0 "$pid" 2>/dev/null || exit 0
    sleep 0.1
done
echo "docker-down: dockerd $pid did not end within 30 s of TERM; killing it" >&2
kill -9 "$pid"
