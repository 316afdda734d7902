#!/usr/bin/env bash
# Builds presence-test/kafka and presence-test/mosquitto from Debian's packages and Maven Central's jars, for
# places where the official images cannot be pulled. Needs root (debootstrap) and a Docker engine.
#
# An image carries the hash of its recipe as a label; one whose hash is still right is not built again.
# DEBIAN_MIRROR names another mirror than debootstrap's default.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
suite=bookworm
label=io.mqtt-presence.recipe
base="presence-test/debian:$suite"
kafka=presence-test/kafka:latest
mosquitto=presence-test/mosquitto:latest

say() { printf 'images-local: %s\n' "$*" >&2; }

# recipe FILE_OR_DIR... prints the hash of the files' names and contents, whatever folder the clone is in.
recipe() { (cd "$here" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16); }

is_current() { [ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null)" = "$2" ]; }

base_recipe="$(recipe build-local.sh)"
kafka_recipe="$(recipe build-local.sh kafka)"
mosquitto_recipe="$(recipe build-local.sh mosquitto)"
if is_current "$kafka" "$kafka_recipe" && is_current "$mosquitto" "$mosquitto_recipe"; then
  say "$kafka and $mosquitto are up to date"
  exit 0
fi

work="$(mktemp -d)"
children=()
cleanup() {
  local child
  for child in "${children[@]}"; do
    kill "$child" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT

# in_background NAME FUNCTION starts it with its output in a file; finish NAME PID shows that file if it failed.
in_background() { "$2" >"$work/$1.log" 2>&1 & children+=("$!"); }
finish() {
  local name="$1" pid="$2"
  if ! wait "$pid"; then
    cat "$work/$name.log" >&2
    say "building $name ended with an error; the lines above are its output"
    exit 1
  fi
  say "$name done after ${SECONDS} s"
}

build_base() {
  debootstrap --variant=minbase "$suite" "$work/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  tar -C "$work/root" -c . | docker import --change "LABEL $label=$base_recipe" --change 'CMD ["bash"]' - "$base"
}

fetch_jars() {
  mkdir -p "$work/kafka"
  cp -R "$here/kafka/." "$work/kafka/"
  mvn -q -B -f "$here/kafka/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$work/kafka/libs"
}

# build IMAGE RECIPE CONTEXT. The host's network, because a sandbox may give no other a way to the mirrors.
build() { docker build --network host --build-arg "BASE=$base" --label "$label=$2" -t "$1" "$3"; }
build_kafka() { build "$kafka" "$kafka_recipe" "$work/kafka"; }
build_mosquitto() { build "$mosquitto" "$mosquitto_recipe" "$here/mosquitto"; }

"$here/install.sh" debootstrap=debootstrap mvn=maven

in_background jars fetch_jars
if is_current "$base" "$base_recipe"; then
  say "$base is up to date"
else
  in_background base build_base
  finish base "${children[1]}"
fi
finish jars "${children[0]}"

children=()
in_background mosquitto build_mosquitto
in_background kafka build_kafka
finish mosquitto "${children[0]}"
finish kafka "${children[1]}"
