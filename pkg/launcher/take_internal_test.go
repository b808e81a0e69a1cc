package launcher

import (
	"os"
	"testing"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
)

// TestTakeStreamsLetsGo: which descriptors PID 1 keeps is PID 1's word. When
// one is not what it should be, none that was taken before it stays.
func TestTakeStreamsLetsGo(t *testing.T) {
	pidfd, err := openPidfd(os.Getpid()) // PID 1's part is this process's own
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	regular, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	pipe, file := int(r.Fd()), int(regular.Fd())
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for _, tt := range []struct {
		name string
		tty  bool
		kept []int
	}{
		{"none", false, nil},
		{"one too few", false, []int{pipe}},
		{"one that is not open", false, []int{pipe, pipe, 1 << 20}},
		{"a file", false, []int{pipe, file}},
		{"too many", false, []int{pipe, pipe, pipe, pipe}},
		{"two terminals", true, []int{pipe, pipe}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := &sandbox{pidfd: pidfd, fixed: store.Record{Request: api.SpawnRequest{Command: []string{"x"}, TTY: tt.tty}}}
			before := open()
			if err := sb.takeStreams([]agentinit.Live{{ID: mainID, KeepFDs: tt.kept}}, nil); err == nil {
				t.Error("they were taken")
			}
			if after := open(); after != before {
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
		})
	}
}
