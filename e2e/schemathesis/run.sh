#!/usr/bin/env bash
# Property-based test of the REST calls against the service's own /openapi.json, by schemathesis: requests right and wrong, generated from the
# document, must never be answered with a 5xx, nor with a status, a content type or a body that the document does not have.
#
# Usage: run.sh URL USER PASSWORD [OPTION...]; the options go to schemathesis. It makes a virtual environment in .bin/ once, with the packages
# of requirements.txt. SCHEMATHESIS_EXAMPLES is the number of requests for each call and phase (default 50), SCHEMATHESIS_SEED
# repeats a run; without it every run is another.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ $# -lt 3 ]; then
  echo "usage: run.sh URL USER PASSWORD [OPTION...]" >&2
  exit 2
fi
url="$1" user="$2" password="$3"
shift 3

venv="$here/../../.bin/schemathesis-$(sha256sum "$here/requirements.txt" | cut -c1-12)"
if [ ! -e "$venv/complete" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv" || { echo "schemathesis: python3 with venv is missing; install Debian's python3-venv" >&2; exit 1; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  touch "$venv/complete"
fi

# The account goes into a file, not onto the command line, where every process could read it.
config="$(mktemp)"
trap 'rm -f "$config"' EXIT
chmod 600 "$config"
cp "$here/schemathesis.toml" "$config"
printf '\n[auth.basic]\nusername = "%s"\npassword = "%s"\n' "$user" "$password" >>"$config"

cd "$(dirname "$venv")" # what it leaves behind is ignored there
"$venv/bin/st" --config-file "$config" run "$url/openapi.json" --url "$url" \
  --max-examples "${SCHEMATHESIS_EXAMPLES:-50}" ${SCHEMATHESIS_SEED:+--seed "$SCHEMATHESIS_SEED"} "$@"
