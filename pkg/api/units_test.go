package api_test

import (
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for in, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "0s": 0, "1h30m": 90 * time.Minute,
		"7d": 7 * day, "0d": 0, "1d12h": 36 * time.Hour, "100000d": 100_000 * day,
	} {
		var d api.Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || d.D() != want {
			t.Errorf("%q is %v, %v; want %v", in, d, err, want)
		}
		// What is written is read again as the same.
		text, err := d.MarshalText()
		var again api.Duration
		if err != nil || again.UnmarshalText(text) != nil || again != d {
			t.Errorf("%q is written as %q, which is %v; %v", in, text, again, err)
		}
	}
	for _, in := range []string{
		"", "d", "-1d", "+1d", "1.5d", "1dd", "1d-1h", "1d 1h", "12h1d", "7", "-5s", "100001d", "4294967296d", "1d2000000h", "0x1d", "1_0d", "7D",
	} {
		d := api.Duration(1)
		if err := d.UnmarshalText([]byte(in)); err == nil || d != 1 {
			t.Errorf("%q is %v, %v; want an error and no change", in, d, err)
		}
	}
}
