#!/bin/bash
# Installs what "make tools build" made.
#
#   install.sh DESTDIR PREFIX
#
# An existing /etc/creel/creeld.toml is left alone.
set -euo pipefail
destdir=$1 prefix=$2
cd "$(dirname "$0")/.."

root=$destdir$prefix
for b in creeld creel creel-mcp creel-pull creel-init creel-egress containerd containerd-shim-runc-v2 ctr crun runc; do
	[ -x "bin/$b" ] || { echo "install.sh: no bin/$b: run \"make tools build\" first" >&2; exit 1; }
done

# Private parts apart from the two commands, so that creel's containerd and
# runtimes are never found by way of PATH.
lib=$prefix/lib/creel/bin
install -d "$root/bin" "$destdir$lib"
install -m 0755 bin/creeld bin/creel "$root/bin/"
install -m 0755 bin/creel-mcp bin/creel-pull bin/creel-init bin/creel-egress bin/containerd bin/containerd-shim-runc-v2 bin/ctr bin/crun bin/runc "$destdir$lib/"

install -d "$root/lib/systemd/system" "$root/lib/sysusers.d" "$root/lib/tmpfiles.d"
sed "/^ExecStart=/s|@bindir@|$prefix/bin|" systemd/creeld.service >"$root/lib/systemd/system/creeld.service"
chmod 0644 "$root/lib/systemd/system/creeld.service"
install -m 0644 systemd/creeld.socket "$root/lib/systemd/system/"
install -m 0644 systemd/creel.sysusers "$root/lib/sysusers.d/creel.conf"
install -m 0644 systemd/creel.tmpfiles "$root/lib/tmpfiles.d/creel.conf"

completion() {
	install -d "$(dirname "$2")"
	bin/creel completion "$1" >"$2"
	chmod 0644 "$2"
}
completion bash "$root/share/bash-completion/completions/creel"
completion zsh "$root/share/zsh/site-functions/_creel"
completion fish "$root/share/fish/vendor_completions.d/creel.fish"

conf=$destdir/etc/creel/creeld.toml
install -d "$(dirname "$conf")"
if [ ! -e "$conf" ]; then
	bin/creeld config default | sed "s|^bin_dir = .*|bin_dir = \"$lib\"|" >"$conf.new"
	grep -qxF "bin_dir = \"$lib\"" "$conf.new"
	bin/creeld config check "$conf.new" >&2
	chmod 0644 "$conf.new"
	mv "$conf.new" "$conf"
fi
