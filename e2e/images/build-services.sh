#!/usr/bin/env bash
# Builds presence/bridge, presence/materializer, presence/query, presence/presence and presence/presencectl FROM
# scratch, with binaries built on this machine. Usage: build-services.sh [VERSION] [SERVICE...]; VERSION is the tag, "local" by default.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/../.." && pwd)"
version="${1:-local}"
services=("${@:2}")
if [ "${#services[@]}" -eq 0 ]; then
  services=(bridge materializer query presence presencectl)
fi

ldflags="-s -w"
if [ "$version" != local ]; then
  ldflags+=" -X github.com/mqtt-presence/presence/libs/service.version=$version"
fi

ca_certificates=/etc/ssl/certs/ca-certificates.crt
if [ ! -r "$ca_certificates" ]; then
  echo "images: $ca_certificates is missing, and the images need it for TLS: install ca-certificates" >&2
  exit 1
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# context SERVICE puts together what the image holds. A volume takes its owner from the image's folder, and
# scratch has no mkdir: hence an empty folder /data with the right owner, and a /tmp that anyone may use.
context() {
  local service="$1" dir="$work/$1"
  mkdir -p "$dir/root/etc/ssl/certs" "$dir/root/tmp" "$dir/owned/data"
  chmod 0755 "$dir/root" "$dir/root/etc" "$dir/root/etc/ssl" "$dir/root/etc/ssl/certs"
  chmod 1777 "$dir/root/tmp"
  chmod 0700 "$dir/owned/data"
  install -m 0644 "$(readlink -f "$ca_certificates")" "$dir/root/etc/ssl/certs/ca-certificates.crt"
  echo 'presence:x:65532:65532:presence:/data:/sbin/nologin' >"$dir/root/etc/passwd"
  echo 'presence:x:65532:' >"$dir/root/etc/group"
  (cd "$repo/services/$service" &&
    CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags "$ldflags" -o "$dir/root/$service" "./cmd/$service")
  sed "s/@SERVICE@/$service/" "$here/service.Dockerfile" >"$dir/Dockerfile"
}

for service in "${services[@]}"; do
  context "$service"
  docker build -q --label "org.opencontainers.image.title=presence/$service" \
    --label "org.opencontainers.image.version=$version" --label org.opencontainers.image.licenses=Apache-2.0 \
    -t "presence/$service:$version" "$work/$service" >/dev/null
  echo "images: presence/$service:$version"
done
