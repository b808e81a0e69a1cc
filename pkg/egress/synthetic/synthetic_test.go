package synthetic_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
)

func table(t *testing.T, most int) (*synthetic.Table, netip.Prefix) {
	t.Helper()
	r := synthetic.NewRange6()
	tab, err := synthetic.New(r, most, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tab, r
}

func TestBind(t *testing.T) {
	tab, r := table(t, 1000)
	seen := map[netip.Addr]egress.Name{}
	for i := range 1000 {
		n := egress.Name(fmt.Sprintf("n%d.example", i))
		v4, v6, fresh, err := tab.Bind(n)
		if err != nil || !fresh || !synthetic.Range4.Contains(v4) || !r.Contains(v6) {
			t.Fatalf("%s: %s %s %v %v", n, v4, v6, fresh, err)
		}
		for _, a := range []netip.Addr{v4, v6} {
			if was, twice := seen[a]; twice {
				t.Fatalf("%s is of %s and %s", a, was, n)
			}
			seen[a] = n
		}
		if a, b, fresh, err := tab.Bind(n); a != v4 || b != v6 || fresh || err != nil {
			t.Fatalf("again: %s %s %v %v", a, b, fresh, err)
		}
	}
	for a, n := range seen {
		if got, ok := tab.Name(a); !ok || got != n {
			t.Errorf("%s is of %q", a, got)
		}
	}
	if _, _, _, err := tab.Bind("more.example"); !errors.Is(err, synthetic.ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if v4, _, fresh, err := tab.Bind("n0.example"); err != nil || fresh || v4.String() != "198.18.1.0" {
		t.Errorf("a full table forgot: %s %v %v", v4, fresh, err)
	}
	// A table that is made again has the same.
	again, err := synthetic.New(r, 1001, tab.Names())
	if err != nil {
		t.Fatal(err)
	}
	for a, n := range seen {
		if got, _ := again.Name(a); got != n {
			t.Errorf("made again, %s is of %q", a, got)
		}
	}
	if _, v6, _, err := again.Bind("more.example"); err != nil || seen[v6] != "" {
		t.Errorf("one more: %s, %v", v6, err)
	}
}

func TestNameOfNothing(t *testing.T) {
	tab, r := table(t, 10)
	if _, _, _, err := tab.Bind("a.example"); err != nil {
		t.Fatal(err)
	}
	last := r.Addr().As16()
	last[8], last[14] = 1, 1 // the same low bits, beyond 2^32
	other := synthetic.NewRange6().Addr().As16()
	other[14] = 1
	for _, a := range []string{
		"198.18.0.0", "198.18.0.1", "198.18.0.255", "198.18.1.1", "198.19.255.255", "198.17.255.255", "198.20.0.0", "8.8.8.8", "::", r.Addr().String(), r.Addr().String() + "1", r.Addr().Next().String() + "%lo",
		"::ffff:198.18.1.0", netip.AddrFrom16(last).String(), netip.AddrFrom16(other).String(),
	} {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := tab.Name(addr); ok {
			t.Errorf("%s is of %s", a, n)
		}
	}
	if n, ok := tab.Name(netip.Addr{}); ok {
		t.Errorf("no address is of %s", n)
	}
	v4, v6, _, _ := tab.Bind("a.example")
	if n, ok := tab.Name(v6.WithZone("lo")); ok {
		t.Errorf("with a zone %s is of %s", v4, n)
	}
}

func TestNew(t *testing.T) {
	r := synthetic.NewRange6()
	for name, try := range map[string]func() error{
		"no range":         func() error { _, err := synthetic.New(netip.Prefix{}, 1, nil); return err },
		"a public range":   func() error { _, err := synthetic.New(netip.MustParsePrefix("2001:db8::/64"), 1, nil); return err },
		"a longer one":     func() error { _, err := synthetic.New(netip.MustParsePrefix("fd00::/96"), 1, nil); return err },
		"bits beyond it":   func() error { _, err := synthetic.New(netip.PrefixFrom(r.Addr().Next(), 64), 1, nil); return err },
		"no names":         func() error { _, err := synthetic.New(r, 0, nil); return err },
		"too many names":   func() error { _, err := synthetic.New(r, synthetic.Most+1, nil); return err },
		"more than it may": func() error { _, err := synthetic.New(r, 1, []egress.Name{"a.b", "c.d"}); return err },
		"one twice":        func() error { _, err := synthetic.New(r, 2, []egress.Name{"a.b", "a.b"}); return err },
	} {
		if try() == nil {
			t.Errorf("%s: made", name)
		}
	}
	if tab, err := synthetic.New(r, synthetic.Most, nil); err != nil || tab == nil {
		t.Error(err)
	}
	if synthetic.NewRange6() == r {
		t.Error("the same range twice")
	}
}

// TestMost: the last address is within the range.
func TestMost(t *testing.T) {
	tab, _ := table(t, synthetic.Most)
	var last netip.Addr
	for i := range synthetic.Most {
		v4, _, _, err := tab.Bind(egress.Name(fmt.Sprintf("%d.example", i)))
		if err != nil {
			t.Fatal(err)
		}
		last = v4
	}
	if last.String() != "198.19.255.254" {
		t.Errorf("the last is %s", last)
	}
}

// TestConcurrent: many that ask at once for the same names get the same.
func TestConcurrent(t *testing.T) {
	tab, _ := table(t, 50)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[egress.Name]netip.Addr{}
	fresh := 0
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				n := egress.Name(fmt.Sprintf("n%d.example", i))
				v4, _, f, err := tab.Bind(n)
				mu.Lock()
				if was, ok := got[n]; err != nil || ok && was != v4 {
					t.Errorf("%s: %s and %s, %v", n, was, v4, err)
				}
				if f {
					fresh++
				}
				got[n] = v4
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if fresh != 50 {
		t.Errorf("%d were fresh", fresh)
	}
}
