#!/bin/bash
# What a visitor does first: clone, "go build ./... && go test ./...", as an
# ordinary user without cgo. Run by root, it becomes "nobody" for it.
#
# The clone has no bin/ and no images, so tests that need them skip by name.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "bare.sh: must run as root, to become nobody" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 0711 "$work"
git -c safe.directory='*' clone -q . "$work/creel"
mkdir "$work/home" "$work/tmp"
chown -R nobody:nogroup "$work/creel" "$work/home" "$work/tmp"

# Modules come from this checkout's cache, over the file system: what is
# tested is the tree, not the network.
CGO_ENABLED=0 go list -deps -test ./... >/dev/null
# By links, because the checkout may be where nobody may not look.
cp -rl "$(go env GOMODCACHE)/cache/download" "$work/proxy" 2>/dev/null ||
	{ rm -rf "$work/proxy" && cp -r "$(go env GOMODCACHE)/cache/download" "$work/proxy"; }
find "$work/proxy" -type d -exec chmod a+rx {} +
proxy=$work/proxy
cd "$work/creel"
env -i PATH="$PATH" HOME="$work/home" TMPDIR="$work/tmp" CGO_ENABLED=0 GOTOOLCHAIN=local \
	GOFLAGS='-buildvcs=false -modcacherw' GOPROXY="file://$proxy" GONOSUMDB='*' \
	setpriv --reuid nobody --regid nogroup --clear-groups --no-new-privs \
	/bin/bash -euc 'go build ./... && go test ./...' </dev/null
