package integration_test

import (
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestShm: /dev/shm has the size that was asked for, to the byte, is in the
// evidence, and what is in it is the sandbox's memory.
func TestShm(t *testing.T) {
	l := lab.New(t, lab.Options{})
	out, errOut, code := l.Creel("run", "-d", "--memory", "64M", "--shm-size", "24M")
	if code != 0 {
		t.Fatalf("run: %d, %q", code, errOut)
	}
	id := strings.TrimSpace(out)
	before, err := l.Stats(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	out, _ = l.Sh(id, "dd if=/dev/zero of=/dev/shm/f bs=64k count=400 2>&1; stat -c %s /dev/shm/f")
	if !strings.Contains(out, "No space left") || !strings.HasSuffix(out, "\n25165824\n") {
		t.Errorf("filled: %q", out)
	}
	after, err := l.Stats(t.Context(), id)
	if err != nil || after.MemoryBytes-before.MemoryBytes < 24<<20 {
		t.Errorf("memory went from %d to %d, %v", before.MemoryBytes, after.MemoryBytes, err)
	}
	ev, err := l.Evidence(t.Context(), id, true)
	if err != nil || !ev[0].OK {
		t.Fatalf("evidence: %v, %+v", err, ev)
	}
	for _, c := range ev[0].Controls {
		if c.Name == "mount./dev/shm" && !strings.Contains(c.Observed, "size 25165824") {
			t.Errorf("%+v", c)
		}
	}
	sb := l.Spawn(api.SpawnRequest{})
	if out, _ := l.Sh(sb.ID, "grep ' /dev/shm ' /proc/self/mountinfo"); !strings.Contains(out, "size=262144k") {
		t.Errorf("the default: %q", out)
	}
	if _, errOut, code := l.Creel("run", "--memory", "64M", "--shm-size", "40M", "--", "/bin/true"); code != 125 || !strings.Contains(errOut, "limits.shm_size") {
		t.Errorf("more than half of the memory: %d, %q", code, errOut)
	}
}
