// Package synthetic gives the names that an agent may reach addresses of their
// own, which mean nothing outside its sandbox.
//
// A connection to such an address is one to the name: what the name resolves to
// is found out outside, when it is connected to. A name keeps its address for
// the sandbox's life, so that one that is remembered by a program never comes
// to mean another.
package synthetic

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// Range4 is where the IPv4 addresses are: those for benchmarks (RFC 2544),
// which no host has. Its first 256 are not given to names.
var Range4 = netip.MustParsePrefix("198.18.0.0/15")

// first is the number of the first name's address in both ranges.
const first = 256

// Most is how many names a table can hold.
const Most = 1<<17 - first - 1

// ErrFull is a table that has as many names as it may.
var ErrFull = errors.New("the sandbox has looked up as many names as it may")

// NewRange6 is a /64 of a random unique local network (RFC 4193, section 3.2),
// for one sandbox to keep: that its addresses differ from all others' has them
// mean nothing to whoever they are told to.
func NewRange6() netip.Prefix {
	a := [16]byte{0: 0xfd}
	_, _ = rand.Read(a[1:8])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// Table is the names of one sandbox. It is safe for concurrent use.
type Table struct {
	range6 netip.Prefix
	most   int

	mu    sync.Mutex
	names []egress.Name
	index map[egress.Name]int
}

// New makes a table for up to most names, with those that it had before, in
// their order. range6 is what NewRange6 gave.
func New(range6 netip.Prefix, most int, names []egress.Name) (*Table, error) {
	switch {
	case range6.Bits() != 64 || !range6.Addr().Is6() || range6.Addr().As16()[0] != 0xfd || range6.Masked() != range6:
		return nil, fmt.Errorf("%s is no /64 of fd00::/8", range6)
	case most < 1 || most > Most:
		return nil, fmt.Errorf("%d names; 1 to %d", most, Most)
	case len(names) > most:
		return nil, ErrFull
	}
	t := &Table{range6: range6, most: most, names: slices.Clone(names), index: make(map[egress.Name]int)}
	for i, n := range names {
		if _, twice := t.index[n]; twice {
			return nil, fmt.Errorf("the name %s is there twice", n)
		}
		t.index[n] = i
	}
	return t, nil
}

// Bind is the addresses of a name. fresh says that it had none before. The
// error is ErrFull.
func (t *Table) Bind(n egress.Name) (v4, v6 netip.Addr, fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, known := t.index[n]
	if !known {
		if len(t.names) >= t.most {
			return netip.Addr{}, netip.Addr{}, false, ErrFull
		}
		i = len(t.names)
		t.names = append(t.names, n)
		t.index[n] = i
	}
	v4, v6 = t.addrs(i)
	return v4, v6, !known, nil
}

func (t *Table) addrs(i int) (v4, v6 netip.Addr) {
	n := uint32(i + first)
	four, six := Range4.Addr().As4(), t.range6.Addr().As16()
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(four[:])+n)
	binary.BigEndian.PutUint32(six[12:], n)
	return netip.AddrFrom4(four), netip.AddrFrom16(six)
}

// Name is the name that an address is of.
func (t *Table) Name(a netip.Addr) (egress.Name, bool) {
	var n uint64
	switch {
	case a.Zone() != "":
		return "", false
	case Range4.Contains(a):
		four, base := a.As4(), Range4.Addr().As4()
		n = uint64(binary.BigEndian.Uint32(four[:]) - binary.BigEndian.Uint32(base[:]))
	case t.range6.Contains(a):
		six := a.As16()
		n = binary.BigEndian.Uint64(six[8:])
	default:
		return "", false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < first || n-first >= uint64(len(t.names)) {
		return "", false
	}
	return t.names[n-first], true
}

// Names are all of them, for New.
func (t *Table) Names() []egress.Name {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names)
}
