#!/usr/bin/env bash
# Installs the Debian packages of those commands that are absent. Usage: install.sh COMMAND=PACKAGE...
set -euo pipefail

packages=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null 2>&1 || packages+=("${pair#*=}")
done
if [ "${#packages[@]}" -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "install: missing packages: ${packages[*]}; install them, or run this as root on Debian" >&2
  exit 1
fi

echo "install: apt-get install ${packages[*]}" >&2
# An unreachable third-party source must not stop us; a package that cannot be had fails the install below.
apt-get update -qq || echo "install: apt-get update reported an error; going on with the package lists at hand" >&2
# With runlevel 1 no package starts its service: a Mosquitto of the system would take the port of the compose file.
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
