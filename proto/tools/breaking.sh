#!/bin/sh
# Compares the contract with its previous version in git, and fails on a change that could break a reader or a caller.
#
#   tools/breaking.sh [COMMIT]      in proto/; needs bin/buf
#
# Without COMMIT the previous version is the last commit, if the .proto files differ from it, else the one before the commit that last
# changed them. Where git holds none (no clone, a shallow one, the first commit) there is nothing to compare, and it says so.
set -eu

protos=presence

skip() {
	echo "breaking: skipped, $1"
	exit 0
}

against=${1:-}
if [ -z "$against" ]; then
	git rev-parse --verify --quiet HEAD >/dev/null 2>&1 || skip "this is no git clone with a commit"
	last=$(git log -1 --format=%H -- "$protos/*.proto")
	[ -n "$last" ] || skip "no commit has a .proto file yet"
	if git diff --quiet HEAD -- "$protos/*.proto"; then
		against=$(git log -1 --skip=1 --format=%H -- "$protos/*.proto")
		[ -n "$against" ] || skip "this clone has no earlier version of the .proto files"
	else
		against=$last
	fi
fi

old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
# The commit's files, not buf's git input: that clones, which a shallow clone or a linked work tree may refuse.
git archive --format=tar --output="$old/proto.tar" "$against" .
tar -xf "$old/proto.tar" -C "$old"
rm "$old/proto.tar"

if ! bin/buf breaking --against "$old"; then
	echo "breaking: the contract changed incompatibly since $against; add fields, messages or calls instead (README.md)" >&2
	exit 1
fi
