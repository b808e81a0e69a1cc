#!/bin/bash
# Makes the disk that "make test-vm" boots, and takes kernel and initrd out of it.
#
#   root.sh SUITE DIR     writes DIR/{root.img,vmlinuz,initrd.img}
#
# Nothing of creel is in it, so it is made once and kept. Needs root, for the
# owners of the files.
set -euo pipefail
suite=$1 out=$2
cd "$(dirname "$0")/../.."

[ "$(id -u)" = 0 ] || { echo "root.sh: must run as root" >&2; exit 1; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Only what the tests need: the kernel, systemd, and the libraries of crun,
# runc and creeld.
packages=linux-image-cloud-amd64,initramfs-tools,systemd,systemd-sysv,udev,kmod,dbus,libseccomp2,libcap2
packages+=,iproute2,procps,util-linux,mount,e2fsprogs,passwd,ca-certificates,libnss-systemd,zstd,busybox-static

echo "making a Debian $suite system for the virtual machine (two minutes)" >&2
mmdebstrap --quiet --mode=root --variant=apt \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='APT::Install-Recommends "false"' \
	--aptopt='Acquire::Retries "3"' --include="$packages" \
	--customize-hook='chroot "$1" passwd -d root' \
	--customize-hook='chroot "$1" useradd -m -u 1500 -s /bin/bash caller' \
	--customize-hook='mkdir -p "$1/opt/creel" "$1/var/lib/creel"' \
	"$suite" "$work/root.tar" "$(hack/debian.sh mirror)" </dev/null >&2
mkdir "$work/root"
tar -xf "$work/root.tar" -C "$work/root" --numeric-owner
rm "$work/root.tar"
root=$work/root

# What a test machine does not need at boot: under emulation each costs seconds.
systemd=$root/etc/systemd/system
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	systemd-tmpfiles-clean.timer e2scrub_reap.service systemd-logind.service getty@.service \
	serial-getty@.service console-getty.service ldconfig.service systemd-journal-catalog-update.service \
	systemd-update-done.service systemd-hwdb-update.service systemd-timesyncd.service \
	systemd-random-seed.service tmp.mount; do
	ln -sf /dev/null "$systemd/$unit"
done
cat >"$root/etc/fstab" <<'FSTAB'
/dev/vda /              ext4 defaults          0 0
/dev/vdb /opt/creel     ext4 ro                0 0
/dev/vdc /var/lib/creel ext4 defaults,prjquota 0 0
FSTAB
echo creel-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost creel-vm\n::1 localhost\n' >"$root/etc/hosts"
printf '%s\n' overlay loop quota_v2 >"$root/etc/modules-load.d/creel-vm.conf"
install -m 0644 integration/vm/guest/creel-test.service "$systemd/"
mkdir -p "$systemd/multi-user.target.wants"
ln -sf ../creel-test.service "$systemd/multi-user.target.wants/creel-test.service"

cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd.img"
rm -rf "$root"/boot/*
truncate -s 3G "$work/root.img"
mke2fs -q -F -t ext4 -d "$root" "$work/root.img"
mv -f "$work/vmlinuz" "$work/initrd.img" "$work/root.img" "$out/"
