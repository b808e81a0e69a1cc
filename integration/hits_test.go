package integration_test

import (
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestFullDiskIsCounted: a main command that filled a file system is told of,
// as an exec is, although its file systems end with it.
func TestFullDiskIsCounted(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for _, tt := range []struct {
		name   string
		script string
		want   int64
	}{
		{"full", "dd if=/dev/zero of=/tmp/f bs=1M; true", 1},
		{"room left", "dd if=/dev/zero of=/tmp/f bs=1M count=1", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", tt.script}, Limits: api.Limits{Tmp: 16 << 20}})
			if _, err := l.Wait(t.Context(), sb.ID); err != nil {
				t.Fatal(err)
			}
			v, err := l.Inspect(t.Context(), sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got := v.LimitsHit["disk"]; got != tt.want || v.ExitCode == nil || *v.ExitCode != 0 {
				t.Errorf("limits_hit disk = %d, want %d; %+v", got, tt.want, v)
			}
		})
	}
}
