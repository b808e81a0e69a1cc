package destination_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/egress/destination"
)

func TestClassify(t *testing.T) {
	for class, addrs := range map[destination.Class]string{
		destination.Public: "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 " +
			"192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2606:4700::1111 2001:4860:4860::8888 2001:200:: 2a00:: 2003::1 3ffe:ffff::",
		destination.Private:   "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 192.168.255.255 fc00:: fdff:ffff::1 fec0::1",
		destination.Shared:    "100.64.0.0 100.127.255.255",
		destination.Loopback:  "127.0.0.0 127.0.0.1 127.255.255.255 ::1",
		destination.LinkLocal: "169.254.0.1 169.254.169.253 169.254.255.255 fe80::1 febf::1",
		destination.Metadata:  "169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:c1::a9fe:a9fe fe80::a9fe:a9fe",
		destination.Multicast: "224.0.0.0 224.0.0.251 239.255.255.255 255.255.255.255 ff02::1 ff0e::1",
		destination.Translated: "::ffff:8.8.8.8 ::ffff:127.0.0.1 ::ffff:0:127.0.0.1 ::127.0.0.1 ::2 64:ff9b::8.8.8.8 64:ff9b::127.0.0.1 64:ff9b:1::a9fe:a9fe 64:ff9b:1:ffff:: 2001::1 2001:0:4136:e378:: " +
			"2002:7f00:1:: 2002:a9fe:a9fe:: 192.88.99.1 2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1",
		destination.Reserved: "0.0.0.0 0.1.2.3 192.0.0.8 192.0.2.1 192.31.196.1 192.52.193.1 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 240.0.0.0 255.255.255.254 :: 100::1 100:0:0:1::1 " +
			"2001:2::1 2001:20::1 2001:1::1 2001:db8::1 2620:4f:8000::1 3fff::1 5f00::1 4000:: 200::1 1:2::3 fe00::1 64:ff9a:: 64:ff9b:2::",
	} {
		for s := range strings.FieldsSeq(addrs) {
			if got := destination.Classify(netip.MustParseAddr(s)); got != class {
				t.Errorf("%s is %s, want %s", s, got, class)
			}
		}
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("2606:4700::1%1")} {
		if got := destination.Classify(a); got != destination.Reserved {
			t.Errorf("%v is %s", a, got)
		}
	}
}

func anyAddr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4 bytes")))
	}
	b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6 bytes"))
	lead := rapid.SampledFrom([]string{"", "::", "::ffff:0:0", "64:ff9b::", "2001::", "2002::", "fc00::", "fe80::", "ff00::", "2000::"}).Draw(t, "lead")
	if lead != "" {
		l := netip.MustParseAddr(lead).As16()
		copy(b[:rapid.IntRange(1, 12).Draw(t, "lead bytes")], l[:])
	}
	return netip.AddrFrom16(b)
}

// TestClassifyAgrees with what the standard library knows of addresses: it
// finds nothing in what is public here.
func TestClassifyAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyAddr(t)
		class := destination.Classify(a)
		if class == destination.Public && (!a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.Is4In6()) {
			t.Fatalf("%s is public", a)
		}
		// However an IPv4 address is written, it is never more than it is.
		if a.Is4() {
			four := a.As4()
			mapped := netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: four[0], 13: four[1], 14: four[2], 15: four[3]})
			if destination.Check(mapped, nil, []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("0.0.0.0/0")}) == nil {
				t.Fatalf("%s is let through", mapped)
			}
		}
	})
}

func TestCheck(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.168.1.10"), netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("2a00::7")}
	lan := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd12::/16")}
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	self := []netip.Prefix{netip.MustParsePrefix("192.168.1.10/32"), netip.MustParsePrefix("2a00::7/128"), netip.MustParsePrefix("127.0.0.1/32")}
	for _, tt := range []struct {
		addr   string
		listed []netip.Prefix
		want   string // what it is refused for; "" lets it through
	}{
		{"8.8.8.8", nil, ""},
		{"2606:4700::1", nil, ""},
		{"1.2.3.4", nil, "an address of this host"},
		{"2a00::7", nil, "an address of this host"},
		{"2a00::7", all, "an address of this host"},
		{"2a00::7", self, ""},
		{"192.168.1.10", nil, "an address of this host"},
		{"192.168.1.10", self, ""},
		{"1.2.3.4", lan, "an address of this host"},
		{"192.168.1.7", nil, "private"},
		{"192.168.1.7", lan, ""},
		{"192.168.1.10", lan, "an address of this host"},
		{"192.168.2.7", lan, "private"},
		{"fd12::1", lan, ""},
		{"fd13::1", lan, "private"},
		{"100.64.0.1", all, ""},
		{"169.254.1.1", all, ""},
		{"169.254.169.254", all, "a cloud's metadata service"},
		{"168.63.129.16", all, "a cloud's metadata service"},
		{"fd00:ec2::254", all, "a cloud's metadata service"},
		{"127.0.0.1", all, "loopback"},
		{"127.0.0.1", self, "loopback"},
		{"::1", all, "loopback"},
		{"0.0.0.0", all, "reserved"},
		{"::", all, "reserved"},
		{"198.18.0.1", all, "reserved"},
		{"::ffff:8.8.8.8", all, "a translated form of another address"},
		{"64:ff9b::808:808", all, "a translated form of another address"},
		{"255.255.255.255", all, "multicast"},
		{"fe80::1%eth0", all, "reserved"},
	} {
		err := destination.Check(netip.MustParseAddr(tt.addr), own, tt.listed)
		var refused *destination.RefusedError
		if tt.want == "" && err != nil || tt.want != "" && (!errors.As(err, &refused) || refused.Why != tt.want) {
			t.Errorf("%s with %v: %v, want %q", tt.addr, tt.listed, err, tt.want)
		}
	}
	if err := destination.Check(netip.Addr{}, nil, all); err == nil {
		t.Error("no address at all is let through")
	}
}
