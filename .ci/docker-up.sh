#!/usr/bin/env bash
# A Docker engine and compose v2 on a bare Debian machine; safe to call again. Prints shell lines to eval:
# DOCKER_HOST, PATH (Debian's docker first) and COMPOSE (the program itself: its Python wrapper drops the exit status).
#
#   eval "$(.ci/docker-up.sh STATE_DIR)"      and at the end     .ci/docker-down.sh STATE_DIR
#
# An engine that already runs is used and never doubled: a second one in the same network namespace deletes the first
# one's bridge and NAT rules. One that was started here has its pid in STATE_DIR/pid.
set -euo pipefail
state=${1:?usage: .ci/docker-up.sh STATE_DIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$state"
exec 3>&1 1>&2

if ! [ -x /usr/sbin/dockerd ] || ! command -v iptables >/dev/null || ! command -v mmdebstrap >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        docker.io iptables mmdebstrap ca-certificates >"$state/apt.log" 2>&1
fi
[ -x "$state/venv/bin/python" ] || python3 -m venv "$state/venv"
"$state/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
compose=$("$state/venv/bin/python" -c 'import compose, pathlib; print(pathlib.Path(compose.__file__).parent / "docker-compose")')
chmod +x "$compose"

answers() { /usr/bin/docker --host "unix://$1" info >/dev/null 2>&1; }
socket=/var/run/docker.sock
if ! answers "$socket"; then
    socket=$state/docker.sock
    if ! answers "$socket"; then
        device=$(ip route show default 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -1)
        mtu=$(cat "/sys/class/net/${device:-none}/mtu" 2>/dev/null || echo 1500)
        # 3>&-: else the caller's $(...) waits for the engine for ever
        setsid dockerd --host "unix://$socket" --data-root "$state/data" --exec-root "$state/exec" \
            --pidfile "$state/pid" --mtu "$mtu" >"$state/dockerd.log" 2>&1 </dev/null 3>&- &
        for _ in $(seq 600); do
            answers "$socket" && break
            sleep 0.1
        done
        if ! answers "$socket"; then
            echo "THE DOCKER ENGINE DID NOT START. The end of $state/dockerd.log:"
            tail -n 30 "$state/dockerd.log"
            exit 1
        fi
    fi
fi
printf 'export DOCKER_HOST=unix://%s PATH=/usr/bin:$PATH COMPOSE=%s\n' "$socket" "$compose" >&3
