package cli

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseForward(t *testing.T) {
	for in, want := range map[string]struct {
		path        string
		local, port uint16
	}{
		"80": {"", 80, 80}, "8080:80": {"", 8080, 80}, "0:80": {"", 0, 80}, "./a.sock:80": {"./a.sock", 0, 80}, "/tmp/a:b.sock:80": {"/tmp/a:b.sock", 0, 80},
	} {
		path, local, port, err := parseForward(in)
		if err != nil || path != want.path || local != want.local || port != want.port {
			t.Errorf("%s: %q %d %d, %v", in, path, local, port, err)
		}
	}
	for _, in := range []string{"", "0", "x", ":80", "80:", "80:0", "65536", "a.sock"} {
		if _, _, _, err := parseForward(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}

func TestUIDOf(t *testing.T) {
	const list = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 3 1 0 100 0 0 10 0
`
	ours, theirs := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.1:50000")
	if uid, err := uidOf(strings.NewReader(list), theirs, ours); uid != 1000 || err != nil {
		t.Errorf("%d, %v", uid, err)
	}
	if uid, err := uidOf(strings.NewReader(list), netip.MustParseAddrPort("127.0.0.1:50001"), ours); err == nil {
		t.Errorf("of no socket: %d", uid)
	}
}
