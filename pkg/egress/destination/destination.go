// Package destination says what an IP address is: of the internet, or of
// something that an agent must not reach by having a name point there.
//
// It is asked with each address that a name has, before the one that is then
// dialled, and never by name: whoever owns a name says what it resolves to.
// The ranges are those of IANA's special-purpose registries (RFC 6890) and of
// the multicast and IPv6 global-unicast registries, as of November 2026.
package destination

import (
	"fmt"
	"net/netip"
	"slices"
)

// Class is what an address is.
type Class int

// The classes. Only Public is for everybody.
const (
	// Public is of the internet.
	Public Class = iota
	// Private is of somebody's own network: RFC 1918, RFC 4193 and site-local.
	Private
	// Shared is behind a provider's NAT (RFC 6598), where much is private too.
	Shared
	// Loopback is this host.
	Loopback
	// LinkLocal is on the same link.
	LinkLocal
	// Metadata is where clouds hand out a machine's credentials.
	Metadata
	// Multicast is no host, and so is broadcast.
	Multicast
	// Translated has another address in it, which something on the way may take
	// for the true one: mapped, compatible, NAT64, 6to4, Teredo, ISATAP.
	Translated
	// Reserved is for nothing that a host has: unspecified, documentation,
	// benchmarks, future use, and what is not given out.
	Reserved
)

var classNames = [...]string{
	Public: "public", Private: "private", Shared: "of a provider's NAT", Loopback: "loopback", LinkLocal: "link-local", Metadata: "a cloud's metadata service",
	Multicast: "multicast", Translated: "a translated form of another address", Reserved: "reserved",
}

// String names it as a refusal does: "ADDRESS is ...".
func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		return fmt.Sprintf("Class(%d)", int(c))
	}
	return classNames[c]
}

// ranges are looked through in turn: what is within another one is before it.
var ranges = []struct {
	prefix netip.Prefix
	class  Class
}{
	// Metadata: link-local but for those that clouds put elsewhere.
	{netip.MustParsePrefix("169.254.169.254/32"), Metadata},     // AWS, Azure, Google, and most others
	{netip.MustParsePrefix("169.254.170.2/32"), Metadata},       // AWS, credentials of tasks
	{netip.MustParsePrefix("169.254.170.23/32"), Metadata},      // AWS, credentials of pods
	{netip.MustParsePrefix("100.100.100.200/32"), Metadata},     // Alibaba
	{netip.MustParsePrefix("192.0.0.192/32"), Metadata},         // Oracle, classic
	{netip.MustParsePrefix("168.63.129.16/32"), Metadata},       // Azure, the host's agent: within public space
	{netip.MustParsePrefix("fd00:ec2::/32"), Metadata},          // AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), Metadata},       // Google
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), Metadata}, // Oracle
	{netip.MustParsePrefix("fe80::a9fe:a9fe/128"), Metadata},    // OpenStack

	{netip.MustParsePrefix("0.0.0.0/8"), Reserved},        // this network: RFC 791
	{netip.MustParsePrefix("10.0.0.0/8"), Private},        // RFC 1918
	{netip.MustParsePrefix("100.64.0.0/10"), Shared},      // RFC 6598
	{netip.MustParsePrefix("127.0.0.0/8"), Loopback},      // RFC 1122
	{netip.MustParsePrefix("169.254.0.0/16"), LinkLocal},  // RFC 3927
	{netip.MustParsePrefix("172.16.0.0/12"), Private},     // RFC 1918
	{netip.MustParsePrefix("192.0.0.0/24"), Reserved},     // protocol assignments: RFC 6890
	{netip.MustParsePrefix("192.0.2.0/24"), Reserved},     // documentation: RFC 5737
	{netip.MustParsePrefix("192.31.196.0/24"), Reserved},  // AS112: RFC 7535
	{netip.MustParsePrefix("192.52.193.0/24"), Reserved},  // AMT: RFC 7450
	{netip.MustParsePrefix("192.88.99.0/24"), Translated}, // 6to4 relays: RFC 7526
	{netip.MustParsePrefix("192.168.0.0/16"), Private},    // RFC 1918
	{netip.MustParsePrefix("192.175.48.0/24"), Reserved},  // AS112: RFC 7534
	{netip.MustParsePrefix("198.18.0.0/15"), Reserved},    // benchmarks: RFC 2544; and creel's own synthetic addresses
	{netip.MustParsePrefix("198.51.100.0/24"), Reserved},  // documentation
	{netip.MustParsePrefix("203.0.113.0/24"), Reserved},   // documentation
	{netip.MustParsePrefix("224.0.0.0/4"), Multicast},     // RFC 5771
	{netip.MustParsePrefix("255.255.255.255/32"), Multicast},
	{netip.MustParsePrefix("240.0.0.0/4"), Reserved}, // RFC 1112

	{netip.MustParsePrefix("::/128"), Reserved},
	{netip.MustParsePrefix("::1/128"), Loopback},
	{netip.MustParsePrefix("::ffff:0:0/96"), Translated},   // mapped: RFC 4291
	{netip.MustParsePrefix("::ffff:0:0:0/96"), Translated}, // SIIT: RFC 2765
	{netip.MustParsePrefix("::/96"), Translated},           // compatible: RFC 4291
	{netip.MustParsePrefix("64:ff9b::/96"), Translated},    // NAT64: RFC 6052
	{netip.MustParsePrefix("64:ff9b:1::/48"), Translated},  // NAT64 of a network's own: RFC 8215
	{netip.MustParsePrefix("2001::/32"), Translated},       // Teredo: RFC 4380
	{netip.MustParsePrefix("2001::/23"), Reserved},         // protocol assignments: RFC 2928
	{netip.MustParsePrefix("2001:db8::/32"), Reserved},     // documentation: RFC 3849
	{netip.MustParsePrefix("2002::/16"), Translated},       // 6to4: RFC 3056
	{netip.MustParsePrefix("2620:4f:8000::/48"), Reserved}, // AS112: RFC 7534
	{netip.MustParsePrefix("3fff::/20"), Reserved},         // documentation: RFC 9637
	{netip.MustParsePrefix("fc00::/7"), Private},           // RFC 4193
	{netip.MustParsePrefix("fe80::/10"), LinkLocal},        // RFC 4291
	{netip.MustParsePrefix("fec0::/10"), Private},          // site-local: RFC 3879
	{netip.MustParsePrefix("ff00::/8"), Multicast},         // RFC 4291
}

// global is all of IPv6 that is given out to hosts (RFC 4291, section 2.4, and
// IANA's registry of it). What is beside it is reserved, SRv6's 5f00::/16 and
// discard's 100::/64 among it.
var global = netip.MustParsePrefix("2000::/3")

// Classify says what an address is. One that is invalid or has a zone is
// Reserved.
func Classify(a netip.Addr) Class {
	if !a.IsValid() || a.Zone() != "" {
		return Reserved
	}
	for _, r := range ranges {
		if r.prefix.Contains(a) {
			return r.class
		}
	}
	if !a.Is6() {
		return Public
	}
	if isatap(a) {
		return Translated
	}
	if !global.Contains(a) {
		return Reserved
	}
	return Public
}

// isatap says whether the interface's identifier is one of RFC 5214, which has
// an IPv4 address in it, whatever the prefix.
func isatap(a netip.Addr) bool {
	b := a.As16()
	return (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// RefusedError says why an address is not dialled.
type RefusedError struct {
	Addr netip.Addr
	Why  string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s is %s", e.Addr, e.Why) }

// Check is nil if a connection to an address may be made: it is public, or one
// of the listed ranges has it and nothing forbids that.
//
// own are the addresses that the host has itself, public ones too: behind them
// is all that listens on every address. One of those has to be listed by itself,
// for who lists a network does not mean the host in it. A range lets in Private,
// Shared and LinkLocal ones. It lets in no Metadata, which is credentials of the
// whole machine, no Loopback, which has a name of its own
// (host.creel.internal), and none of what is no host's address.
func Check(a netip.Addr, own []netip.Addr, listed []netip.Prefix) error {
	isOwn := slices.Contains(own, a)
	in := slices.ContainsFunc(listed, func(p netip.Prefix) bool { return p.Contains(a) && (p.IsSingleIP() || !isOwn) })
	class := Classify(a)
	switch class {
	case Public:
		if in || !isOwn {
			return nil
		}
	case Private, Shared, LinkLocal:
		if in {
			return nil
		}
	case Loopback, Metadata, Multicast, Translated, Reserved:
		return &RefusedError{a, class.String()}
	}
	if isOwn {
		return &RefusedError{a, "an address of this host"}
	}
	return &RefusedError{a, class.String()}
}
