package api

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. In JSON it is an integer or a string with a
// binary suffix ("512M", "2GiB"); it is always written as an integer. In TOML
// and on the command line it is the string form.
type Size int64

// ParseSize reads "1048576", "512K", "512M", "1.5G", "2GiB" or "1T".
// Suffixes are powers of 1024. The result is never negative.
func ParseSize(s string) (Size, error) {
	t := strings.TrimSpace(s)
	num := strings.TrimRight(t, "kKmMgGtTiIbB")
	suffix := strings.ToLower(t[len(num):])
	shift, ok := map[string]uint{
		"": 0, "b": 0,
		"k": 10, "kb": 10, "ki": 10, "kib": 10,
		"m": 20, "mb": 20, "mi": 20, "mib": 20,
		"g": 30, "gb": 30, "gi": 30, "gib": 30,
		"t": 40, "tb": 40, "ti": 40, "tib": 40,
	}[suffix]
	f, err := strconv.ParseFloat(num, 64)
	if !ok || err != nil || f < 0 || math.IsNaN(f) || math.IsInf(f, 0) || strings.ContainsAny(num, "xXpPeE_") {
		return 0, fmt.Errorf("%q is not a size; write bytes or a number with K, M, G or T", s)
	}
	b := f * float64(uint64(1)<<shift)
	if b > 1<<60 {
		return 0, fmt.Errorf("%q is too large a size", s)
	}
	return Size(b), nil
}

// String is the shortest exact form, such as "512M".
func (s Size) String() string {
	for _, u := range []struct {
		shift  uint
		suffix string
	}{{40, "T"}, {30, "G"}, {20, "M"}, {10, "K"}} {
		if s > 0 && int64(s)%(1<<u.shift) == 0 {
			return strconv.FormatInt(int64(s)>>u.shift, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText reads the string form (TOML, flags).
func (s *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// MarshalJSON writes the number of bytes.
func (s Size) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, int64(s), 10), nil }

// UnmarshalJSON reads a whole number of bytes or the string form.
func (s *Size) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var t string
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		return s.UnmarshalText([]byte(t))
	}
	v, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || v < 0 || v > 1<<60 {
		return fmt.Errorf("%s is not a size; write bytes or a string such as \"512M\"", b)
	}
	*s = Size(v)
	return nil
}

// Duration is a span of time, written as Go writes it ("90s", "10m") in JSON,
// TOML and on the command line, where whole days may come first ("7d",
// "1d12h"): always 24 hours each. It is never negative.
type Duration time.Duration

// maxDays is how many days fit into a Duration with room for the rest.
const maxDays = 100_000

// UnmarshalText reads the string form.
func (d *Duration) UnmarshalText(b []byte) error {
	text, days := string(b), int64(0)
	bad := fmt.Errorf("%q is not a duration; write a number with ms, s, m, h or d", b)
	if n, rest, ok := strings.Cut(text, "d"); ok {
		v, err := strconv.ParseUint(n, 10, 32)
		if err != nil || v > maxDays {
			return bad
		}
		if text, days = rest, int64(v); text == "" {
			text = "0s"
		}
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 || days > 0 && v > maxDays*time.Hour {
		return bad
	}
	*d = Duration(v + time.Duration(days)*24*time.Hour)
	return nil
}

// MarshalText writes the string form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// String is the same form.
func (d Duration) String() string { return time.Duration(d).String() }

// D is the std type.
func (d Duration) D() time.Duration { return time.Duration(d) }
