package reserve_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/creel-sandbox/creel/pkg/reserve"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	free, broken := int64(0), error(nil)
	r := reserve.With(1000, func() (reserve.Space, error) { return reserve.Space{Total: 9000, Free: free}, broken })
	for i, tt := range []struct {
		free    int64
		want    reserve.State
		changed bool
	}{
		{5000, reserve.Room, false},
		{1000, reserve.Room, false}, // the reserve itself is whole
		{999, reserve.Short, true},
		{0, reserve.Short, false},
		{1000, reserve.Scarce, false},
		{1249, reserve.Scarce, false},
		{999, reserve.Short, false},
		{1250, reserve.Room, true},
		{1100, reserve.Room, false}, // it was not short since
	} {
		free = tt.free
		s, changed, err := r.Check()
		if s != tt.want || changed != tt.changed || err != nil {
			t.Errorf("%d: with %d free: %v, changed %t, %v; want %v, %t", i, tt.free, s, changed, err, tt.want, tt.changed)
		}
	}
	broken = errors.New("no answer")
	if s, changed, err := r.Check(); s != reserve.Scarce || changed || err == nil {
		t.Errorf("unknown: %v, %t, %v; want nothing to be done", s, changed, err)
	}
	free, broken = 0, nil
	none := reserve.With(0, func() (reserve.Space, error) { return reserve.Space{}, nil })
	if s, _, err := none.Check(); s != reserve.Room || err != nil {
		t.Errorf("without a reserve: %v, %v", s, err)
	}
}

func TestLook(t *testing.T) {
	free := int64(0)
	r := reserve.With(1000, func() (reserve.Space, error) { return reserve.Space{Free: free}, nil })
	check := func() {
		t.Helper()
		if _, _, err := r.Check(); err != nil {
			t.Fatal(err)
		}
	}
	check()
	const grown = reserve.Grown
	for i, tt := range []struct {
		now  map[string]int64
		want []string
	}{
		{map[string]int64{"a": 9 << 30, "b": 5, "slow": 0}, nil}, // what was there before says nothing
		{map[string]int64{"a": 9<<30 + grown, "b": 5 + grown - 1, "slow": grown / 2}, []string{"a"}},
		{map[string]int64{"a": 9<<30 + grown, "b": 5 + grown - 1, "slow": grown}, []string{"slow"}},
		{map[string]int64{"a": 9<<30 + 2*grown, "b": 5, "slow": 0}, []string{"a"}},
		{map[string]int64{"b": 5 + grown, "new": 7 << 30, "slow": grown - 1}, []string{"b"}},
		{map[string]int64{"a": 99 << 30, "new": 7 << 30}, nil}, // a was away
	} {
		got := r.Look(tt.now)
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("look %d (-want +got):\n%s", i, diff)
		}
	}
	// When there was room in between, it begins again.
	free = 5000
	check()
	free = 0
	check()
	if got := r.Look(map[string]int64{"new": 8 << 30}); len(got) != 0 {
		t.Errorf("after there was room: %q", got)
	}
}

func TestSpace(t *testing.T) {
	s, err := reserve.New(t.TempDir(), 1).Space()
	if err != nil || s.Total <= 0 || s.Free > s.Total {
		t.Errorf("%+v, %v", s, err)
	}
	if _, _, err := reserve.New("/none/at/all", 1).Check(); err == nil {
		t.Error("no such directory, and no error")
	}
}
