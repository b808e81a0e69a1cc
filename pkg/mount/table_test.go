package mount

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	in := `22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime,idmapped master:1 shared:2 - ext3 /dev/root rw,errors=continue
40 35 0:50 / / ro - fuse.sshfs a - b rw`
	var got []entry
	if err := parse(strings.NewReader(in), func(e entry) { got = append(got, e) }); err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{id: 22, device: "0:21", root: "/", point: "/proc", options: []string{"rw", "relatime"}, fsType: "proc"},
		{id: 36, device: "98:0", root: "/mnt1", point: `/mnt 2\x`, options: []string{"rw", "noatime", "idmapped"}, propagation: []string{"master:1", "shared:2"}, fsType: "ext3"},
		{id: 40, device: "0:50", root: "/", point: "/", options: []string{"ro"}, fsType: "fuse.sshfs"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("parse (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"22 27 0:21 / /proc rw", "x 27 0:21 / /proc rw - proc proc rw", " - ", "1 2 3 4 5 6 - "} {
		if err := parse(strings.NewReader(bad), func(entry) {}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// FuzzParseLine: a line is refused, or has a kind and a mount point.
func FuzzParseLine(f *testing.F) {
	f.Add([]byte(`36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root rw`))
	f.Add([]byte(`1 2 3 4 \999 6 - x`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parseLine(line)
		if err == nil && (e.fsType == "" || len(e.options) == 0) {
			t.Errorf("%q gave %+v", line, e)
		}
	})
}

func TestPrivateDevices(t *testing.T) {
	objs := []object{{path: "/run/user", real: "/run/user", inside: true}, {path: "/s.sock", real: "/srv"}}
	host := []entry{
		{device: "8:1", point: "/"},
		{device: "8:1", point: "/run/user/1/bind"}, // also elsewhere
		{device: "0:7", point: "/run/user/1000"},   // only there
		{device: "0:8", point: "/run/user"},
		{device: "0:9", point: "/run/users"},
		{device: "0:10", point: "/srv/x"}, // beside a socket
	}
	want := map[string]string{"0:7": "/run/user", "0:8": "/run/user"}
	if diff := cmp.Diff(want, privateDevices(host, objs)); diff != "" {
		t.Errorf("privateDevices (-want +got):\n%s", diff)
	}
}
