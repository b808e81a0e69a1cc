package outside_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestParseConfig(t *testing.T) {
	got := outside.ParseConfig("# nameserver 9.9.9.9\n;nameserver 9.9.9.8\nsearch example.com\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\nnameserver ::1\nnameserver 192.0.2.4\n",
		"127.0.0.1 localhost\n# 1.1.1.1 a.example\n192.168.1.7\tnas.home.example NAS.Home.Example. # b.example\n::ffff:10.0.0.1 c.example\nfd00::7 c.example\nx d.example\n")
	want := outside.Config{Servers: addrs("192.0.2.1", "fe80::1%eth0", "::1"), Hosts: map[egress.Name][]netip.Addr{
		"nas.home.example": addrs("192.168.1.7"), "c.example": addrs("10.0.0.1", "fd00::7"),
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := outside.ParseConfig("", ""); !slices.Equal(got.Servers, addrs("127.0.0.1")) {
		t.Errorf("of nothing: %v", got)
	}
	many := outside.ParseConfig("", strings.Repeat("10.0.0.1 a.example\n", 10)+hosts(5000))
	if len(many.Hosts) != 4096 {
		t.Errorf("%d names", len(many.Hosts))
	}
}

func hosts(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("10.0.0.1 h" + string(rune('a'+i%26)) + strings.Repeat("x", i/26%50) + strings.Repeat("y", i/1300) + ".example\n")
	}
	return b.String()
}

// TestHosts: what the host's file says is asked of no server.
func TestHosts(t *testing.T) {
	h := outside.New(outside.ParseConfig("nameserver 127.0.0.1", "192.168.1.7 nas.example"))
	got, err := h.Lookup(t.Context(), "nas.example")
	if err != nil || !slices.Equal(got, addrs("192.168.1.7")) {
		t.Errorf("%v, %v", got, err)
	}
	h.Configure(outside.ParseConfig("nameserver 127.0.0.1", "192.168.1.8 nas.example"))
	if got, err = h.Lookup(t.Context(), "nas.example"); err != nil || !slices.Equal(got, addrs("192.168.1.8")) {
		t.Errorf("afterwards: %v, %v", got, err)
	}
}

func TestOwn(t *testing.T) {
	got, err := outside.New(outside.ParseConfig("", "")).Own()
	if err != nil || !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := outside.New(outside.ParseConfig("", ""))
	c, err := h.Dial(t.Context(), netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := h.Dial(ctx, netip.MustParseAddrPort(l.Addr().String())); err == nil {
		c.Close()
		t.Error("it connects although it was cancelled")
	}
}
