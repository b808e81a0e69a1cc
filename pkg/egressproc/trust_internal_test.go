package egressproc

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestTrust: an authority is in the store for long before it is used, also over
// restarts of the daemon.
func TestTrust(t *testing.T) {
	dir := t.TempDir()
	k := &Keeper{opts: Options{Dir: dir, TrustDir: filepath.Join(dir, "trust")}}
	p := k.newProcess(1000, 2000)
	now := time.Now()
	clock := func() time.Time { return now }
	store := filepath.Join(k.TrustDir(1000), "ca.pem")
	since := map[string]time.Time{} // by certificate: when it came to be in the store
	used := map[string]bool{}
	for day := range 100 {
		if day%7 == 3 {
			p = k.newProcess(1000, 2000)
		}
		secret, err := p.trusted("", clock)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(store)
		if err != nil {
			t.Fatal(err)
		}
		for cert := range bytes.SplitAfterSeq(text, []byte("-----END CERTIFICATE-----\n")) {
			if _, known := since[string(cert)]; !known && len(cert) > 0 {
				since[string(cert)] = now
			}
		}
		cert, _, _ := bytes.Cut(secret, []byte("-----BEGIN EC"))
		at, there := since[string(cert)]
		if !there || !bytes.Contains(text, cert) {
			t.Fatalf("day %d: what is used is not in the store", day)
		}
		if !used[string(cert)] && len(used) > 0 && now.Sub(at) < publishAfter-24*time.Hour {
			t.Errorf("day %d: used %v after it came to the store", day, now.Sub(at))
		}
		used[string(cert)] = true
		now = now.Add(24 * time.Hour)
	}
	if len(used) < 5 || len(used) > 10 {
		t.Errorf("%d were used in 100 days", len(used))
	}
	if err := os.WriteFile(filepath.Join(dir, p.secrets()), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.newProcess(1000, 2000).trusted("", clock); err != nil {
		t.Errorf("after its file was lost: %v", err)
	}
	if err := p.forgetTrust(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if _, gone := os.Stat(filepath.Join(dir, p.secrets())); !os.IsNotExist(gone) || err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v, %v", left, gone, err)
	}
}
