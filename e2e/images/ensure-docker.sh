#!/usr/bin/env bash
# Makes sure that a Docker engine answers, installing and starting one when it must.
#
# Idempotent: where `docker info` answers already, nothing is changed. On Debian or Ubuntu as root, missing
# packages come from apt; an engine that does not answer is started by hand, because a CI machine or a sandbox
# often has no init system. The engine outlives this script; DOCKERD_LOG says where it logs.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
log_file="${DOCKERD_LOG:-${TMPDIR:-/tmp}/presence-dockerd.log}"
start_timeout_s="${DOCKERD_TIMEOUT_S:-60}"

say() { printf 'ensure-docker: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
have_compose() { have docker-compose || docker compose version >/dev/null 2>&1; }
answers() { docker info >/dev/null 2>&1; }

# A kernel without the nf_tables families that Docker needs may still have the legacy tables. The choice is
# made for dockerd alone, by a folder put first in its PATH; the system's alternatives stay as they are.
legacy_iptables_path() {
  local dir tool
  have iptables-legacy || return 1
  dir="$(mktemp -d)"
  for tool in iptables ip6tables; do
    ln -s "$(command -v "$tool-legacy")" "$dir/$tool"
  done
  printf '%s:%s' "$dir" "$PATH"
}

# A pid file left by an engine that was killed makes the next one refuse to start once the number is reused.
remove_stale_pid_file() {
  local file=/var/run/docker.pid pid
  [ -f "$file" ] || return 0
  pid="$(cat "$file")"
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ]; then
    rm -f "$file"
  fi
}

# try_start starts dockerd with the arguments given and waits until it answers, exits, or the time is up.
# Arguments: PATH for dockerd, then dockerd's own flags.
try_start() {
  local path="$1" pid deadline
  shift
  remove_stale_pid_file
  say "starting dockerd ${*:-(default options)}; log: $log_file"
  printf '\n=== dockerd %s\n' "$*" >>"$log_file"
  PATH="$path" setsid nohup dockerd "$@" >>"$log_file" 2>&1 </dev/null &
  pid=$!
  deadline=$((SECONDS + start_timeout_s))
  while [ "$SECONDS" -lt "$deadline" ]; do
    if answers; then
      return 0
    fi
    if ! kill -0 "$pid" 2>/dev/null; then
      say "dockerd ended: $(tail -n 1 "$log_file")"
      return 1
    fi
    sleep 0.3
  done
  say "dockerd did not answer within ${start_timeout_s} s"
  kill "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  return 1
}

start_engine() {
  [ "$(id -u)" -eq 0 ] || die "no Docker engine answers and only root can start one: start it, or set DOCKER_HOST"
  "$here/install.sh" dockerd=docker.io iptables=iptables
  if ! mountpoint -q /sys/fs/cgroup; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup || say "mounting cgroups did not work; dockerd will say if it needs them"
  fi
  # From the least to the most reduced engine: the machine may itself be a container, where a filter table,
  # or overlay on overlay, is not to be had. Ports are then published by dockerd's own proxy.
  local legacy
  try_start "$PATH" && return
  if legacy="$(legacy_iptables_path)"; then
    try_start "$legacy" && return
  fi
  try_start "$PATH" --iptables=false --ip6tables=false && return
  try_start "$PATH" --iptables=false --ip6tables=false --storage-driver=vfs && return
  tail -n 30 "$log_file" >&2
  die "no Docker engine could be started; the lines above are the end of $log_file"
}

if ! have docker; then
  "$here/install.sh" docker=docker.io
fi
if ! answers; then
  [ -z "${DOCKER_HOST:-}" ] || die "DOCKER_HOST is $DOCKER_HOST and does not answer: unset it, or start that engine"
  start_engine
fi
if ! have_compose; then
  "$here/install.sh" docker-compose=docker-compose
fi
say "engine $(docker info --format '{{.ServerVersion}}, storage driver {{.Driver}}')"
