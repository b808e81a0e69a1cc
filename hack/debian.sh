#!/bin/bash
# Packages and sources from the Debian mirror that this machine already uses.
#
#   debian.sh mirror                      print the mirror's address
#   debian.sh need PACKAGE...             install what is missing (as root)
#   debian.sh source SUITE PACKAGE DIR    upstream tar ball of a source package into DIR, signature checked
#   debian.sh download SUITE DIR PACKAGE...   .deb files into DIR, signature checked
#
# source and download work for suites that the machine itself does not follow
# (crun of Debian 13 on Debian 12, qemu of the backports): apt is run with
# lists and caches of its own under .cache/, so nothing of the machine changes.
# CREEL_DEBIAN_MIRROR names another mirror than the machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

die() {
	echo "debian.sh: $*" >&2
	exit 1
}

# mirror prints the first address that serves the machine's own release:
# "URIs:" of a deb822 file, or the third word of a one-line entry.
mirror() {
	if [ -n "${CREEL_DEBIAN_MIRROR:-}" ]; then
		echo "$CREEL_DEBIAN_MIRROR"
		return
	fi
	local codename uri
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$codename" ] || die "/etc/os-release has no VERSION_CODENAME; set CREEL_DEBIAN_MIRROR"
	uri=$(
		shopt -s nullglob
		for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
			[ -r "$f" ] || continue
			sed -nE 's/^deb +(\[[^]]*\] +)?(\S+) +(\S+) .*$/\2 \3/p' "$f" |
				awk -v s="$codename" '$2 == s { print $1 }'
		done
		for f in /etc/apt/sources.list.d/*.sources; do
			# One paragraph is one entry; its fields come in any order.
			awk -v s="$codename" '
				function flush(  i, n, w) {
					n = split(suites, w, " ")
					if (!off) for (i = 1; i <= n; i++) if (w[i] == s && uri != "") print uri
					uri = suites = ""; off = 0
				}
				/^[ \t]*$/ { flush(); next }
				/^URIs:/ { uri = $2 }
				/^Suites:/ { sub(/^Suites:/, ""); suites = $0 }
				/^Enabled:[ \t]*no/ { off = 1 }
				END { flush() }' "$f"
		done
	)
	uri=${uri%%$'\n'*}
	[ -n "$uri" ] || die "no entry for $codename under /etc/apt; set CREEL_DEBIAN_MIRROR"
	echo "${uri%/}"
}

need() {
	local p have missing=()
	have=$(dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' 2>/dev/null | sed -nE 's/^installed ([^:]+).*/\1/p')
	for p in "$@"; do
		grep -qxF "$p" <<<"$have" || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "not installed: ${missing[*]}; as root: make deps"
	echo "installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	local opts=(-qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
	apt-get "${opts[@]}" update >&2
	apt-get "${opts[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >&2
}

# private_apt SUITE sets the array apt to an apt-get command for that suite.
private_apt() {
	local suite=$1 dir
	dir=$PWD/.cache/apt/$suite
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	# deb and deb-src: the release file, hence every hash below it, is checked
	# against Debian's own keys and no other.
	printf '%s [signed-by=%s] %s %s main\n' \
		deb "$keyring" "$(mirror)" "$suite" \
		deb-src "$keyring" "$(mirror)" "$suite" >"$dir/sources.list"
	apt=(apt-get -qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::Etc::preferencesparts=/dev/null -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache"
		-o Acquire::Retries=3 -o Acquire::Languages=none -o Acquire::AllowInsecureRepositories=false
		-o APT::Get::AllowUnauthenticated=false -o APT::Sandbox::User=root -o Debug::NoLocking=true)
	"${apt[@]}" update >&2
}

source_package() {
	local suite=$1 package=$2 dir=$3
	private_apt "$suite"
	mkdir -p "$dir"
	(cd "$dir" && "${apt[@]}" source --download-only --tar-only "$package/$suite" >&2)
}

download() {
	local suite=$1 dir=$2 p pinned=()
	shift 2
	private_apt "$suite"
	mkdir -p "$dir"
	for p in "$@"; do pinned+=("$p/$suite"); done
	(cd "$dir" && "${apt[@]}" download "${pinned[@]}" >&2)
}

case "${1:-}" in
mirror) mirror ;;
need) shift && need "$@" ;;
source) [ $# = 4 ] || die "source SUITE PACKAGE DIR" && source_package "$2" "$3" "$4" ;;
download) [ $# -ge 4 ] || die "download SUITE DIR PACKAGE..." && shift && download "$@" ;;
*) die "usage: mirror | need PACKAGE... | source SUITE PACKAGE DIR | download SUITE DIR PACKAGE..." ;;
esac
