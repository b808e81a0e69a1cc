package launcher

import (
	"os"
	"testing"
)

// TestFullFiles counts a process once for as long as it stays at its limit.
func TestFullFiles(t *testing.T) {
	f := fullFiles{}
	at := func(pids ...int) map[int]bool {
		m := map[int]bool{}
		for _, p := range pids {
			m[p] = true
		}
		return m
	}
	f.note("quiet", at())
	f.note("a", at(10))
	f.note("a", at(10, 11))
	f.note("a", at(11))
	f.note("a", at(10, 11)) // again, after a pause
	f.note("b", at(20))
	if n := f.count(); n != 4 || len(f) != 2 {
		t.Errorf("count %d of %d execs, want 4 of 2", n, len(f))
	}
	if n := f.take("a"); n != 3 || f.take("a") != 0 {
		t.Errorf("a has %d, want 3, once", n)
	}
	f.note("a", at(10, 11)) // left behind by the exec, and counted before
	if n := f.takeAll(); n != 1 || len(f) != 0 {
		t.Errorf("the rest is %d, want 1; %d entries stay", n, len(f))
	}
}

// TestDescriptors counts this process's own, and what is not there as none.
func TestDescriptors(t *testing.T) {
	before := descriptors(os.Getpid(), 1<<20)
	var open []*os.File
	for range 10 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		open = append(open, f)
	}
	if after := descriptors(os.Getpid(), 1<<20); before < 3 || after < before+int64(len(open)) {
		t.Errorf("%d, then %d with %d more", before, after, len(open))
	}
	if n := descriptors(1<<30, 10); n != 0 {
		t.Errorf("no process has %d", n)
	}
}
