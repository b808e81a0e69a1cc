#!/bin/bash
# Prints the emulator's command, one word a line, for "make test-vm".
#
#   qemu.sh FLOOR
#
# The machine's own qemu if its major version is at least FLOOR. Otherwise the
# one of the release's backports, unpacked beside it under .cache/vm: the
# machine's own package brings the libraries, and nothing is replaced.
set -euo pipefail
floor=$1
cd "$(dirname "$0")/../.."

version=$(qemu-system-x86_64 --version | sed -nE 's/^QEMU emulator version ([0-9]+).*/\1/p')
if [ "${version:-0}" -ge "$floor" ]; then
	command -v qemu-system-x86_64
	exit
fi

dir=$PWD/.cache/vm/qemu-$floor
if [ ! -e "$dir/complete" ]; then
	echo "fetching qemu $floor from the backports" >&2
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")-backports
	rm -rf "$dir"
	mkdir -p "$dir/debs" "$dir/root"
	hack/debian.sh download "$suite" "$dir/debs" qemu-system-x86 qemu-system-common qemu-system-data seabios
	for deb in "$dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
	rm -rf "$dir/debs"
	"$dir/root/usr/bin/qemu-system-x86_64" --version >&2
	touch "$dir/complete"
fi
printf '%s\n' "$dir/root/usr/bin/qemu-system-x86_64" -L "$dir/root/usr/share/qemu" -L "$dir/root/usr/share/seabios"
