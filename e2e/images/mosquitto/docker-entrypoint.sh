#!/bin/sh
# A mounted volume may belong to root, but the broker gives up root. What is mounted read-only stays as it is.
set -eu

if [ "$(id -u)" -eq 0 ]; then
  chown -R mosquitto:mosquitto /mosquitto 2>/dev/null || true
fi
exec "$@"
