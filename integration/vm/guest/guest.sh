#!/bin/bash
# Runs in the virtual machine as root, from creel-test.service. What it prints
# goes to the host over the second serial line; the host reads the lines that
# begin with CREEL-VM and those of "go test -v".
#
# tests/manifest has a line for each test binary: NAME TIMEOUT REGEX.
set -uo pipefail
cd /opt/creel

echo "CREEL-VM-BOOT kernel $(uname -r), $(systemctl --version | head -n1), $(. /etc/os-release && echo "$PRETTY_NAME"), $(cut -d' ' -f1 /proc/uptime) s after boot"
. ./env

failures=0
begin() { echo "CREEL-VM-BEGIN $1"; }
end() { # NAME EXITCODE
	[ "$2" = 0 ] || failures=$((failures + 1))
	echo "CREEL-VM-END $1 $2"
}

# install: what "make install" laid out becomes this machine's, then the
# service starts the way an administrator starts it.
start_service() {
	cp -a install/. / &&
		systemd-sysusers &&
		systemd-tmpfiles --create &&
		usermod -aG creel caller &&
		systemctl daemon-reload &&
		systemctl start creeld.service &&
		systemctl --no-pager --lines=0 status creeld.socket creeld.service
}

if [ -d install ]; then
	begin service
	start_service
	end service $?
fi

while read -r name timeout regex <&3; do
	begin "$name"
	(cd "tests/$name" && exec timeout --kill-after=10s "$timeout" ./test -test.v -test.run "$regex") </dev/null
	end "$name" $?
done 3<tests/manifest

if [ -d install ] && [ "$failures" != 0 ]; then
	echo "CREEL-VM-JOURNAL"
	journalctl --no-pager --lines=200 --unit=creeld.service
fi
echo "CREEL-VM-DONE failures=$failures"
sync
