#!/bin/bash
# Builds crun from the source package of Debian.
#
#   crun.sh SUITE VERSION SHA256 OUTPUT
#
# Debian 13's own binary needs a newer C library than Debian 12 has, and
# Debian 12's crun (1.8.1) predates id-mapped mounts, so it is built here.
set -euo pipefail
suite=$1 version=$2 sha256=$3 output=$4
cd "$(dirname "$0")/.."

src=$PWD/.cache/src/crun-$version
tarball=$src/crun_$version.orig.tar.gz
mkdir -p "$src"
if ! echo "$sha256  $tarball" | sha256sum --check --status 2>/dev/null; then
	rm -f "$src"/crun_*
	hack/debian.sh source "$suite" crun "$src"
	echo "$sha256  $tarball" | sha256sum --check --quiet || {
		echo "crun.sh: $suite has no crun $version with this digest: change hack/versions.mk after a review" >&2
		exit 1
	}
fi

work=$(mktemp -d "$src/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
tar -xzf "$tarball" -C "$work" --strip-components=1
cd "$work"
# No systemd: creeld makes the cgroups' parent itself. No criu: no checkpoints.
# Embedded yajl: one library less that a host must have.
./configure --quiet --disable-systemd --disable-criu --enable-embedded-yajl \
	CFLAGS="-O2 -g0 -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE" LDFLAGS="-pie -Wl,-z,relro,-z,now" >configure.out 2>&1 ||
	{ tail -n 30 configure.out config.log >&2; exit 1; }
# The whole build: the target "crun" alone lacks generated sources.
make -j"$(nproc)" >make.out 2>&1 || { tail -n 30 make.out >&2; exit 1; }
strip crun
install -m 0755 crun "$output.new"
mv -f "$output.new" "$output"
