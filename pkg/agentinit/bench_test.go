package agentinit_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

// BenchmarkExec is Start, Release, Wait and Ack of /bin/true.
func BenchmarkExec(b *testing.B) {
	s := running(b)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprintf("b%d", i)
		if _, err := s.Start(ctx, agentinit.Process{ID: id, Argv: []string{"/bin/true"}}, []*os.File{null, null, null}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Release(ctx, id); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(ctx, id); err != nil {
			b.Fatal(err)
		}
		if err := s.Ack(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(pss(b, s.cmd.Process.Pid)), "PSS-KiB")
}

// TestSize holds the costs that every sandbox pays.
func TestSize(t *testing.T) {
	s := newSandbox(t, nil)
	start := time.Now()
	s.take(t)
	t.Logf("helper, creel-init and hello: %v", time.Since(start))
	if err := s.Setup(deadline(t), agentinit.Setup{}); err != nil {
		t.Fatal(err)
	}
	path, err := buildInit()
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	kb := pss(t, s.cmd.Process.Pid)
	t.Logf("binary %d bytes, PSS idle %d KiB", st.Size(), kb)
	if st.Size() > 1_600_000 {
		t.Errorf("binary of %d bytes", st.Size())
	}
	if kb > 2560 {
		t.Errorf("PSS of %d KiB", kb)
	}
}
