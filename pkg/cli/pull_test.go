package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPulling is what a pull shows: how much of how much.
func TestPulling(t *testing.T) {
	img := &RemoteImage{Ref: "r.test/x\x1b[2J:1", Size: 200 << 20}
	got := []string{pulling(true, 0, img), pulling(true, 100<<20, img), pulling(true, 201<<20, img), pulling(false, 50<<20, img), pulling(false, 0, &RemoteImage{Ref: "x"})}
	want := []string{
		"[                              ] 0%, 0 of 200M, " + `r.test/x\x1b[2J:1`,
		"[===============               ] 50%, 100M of 200M, " + `r.test/x\x1b[2J:1`,
		"[==============================] 100%, 200M of 200M, " + `r.test/x\x1b[2J:1`,
		`pulling r.test/x\x1b[2J:1: 25%, 50M of 200M`,
		"pulling x: 100%, 0 of 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
	// A line that is wider than a terminal could not be taken away.
	var out bytes.Buffer
	p := &progress{out: &out, terminal: true, text: strings.Repeat("é", 300)}
	p.show(0, time.Second)
	if line := strings.TrimPrefix(out.String(), "\r\x1b[K"); len([]rune(line)) != usualCols-1 {
		t.Errorf("a line of %d characters for a terminal of %d", len([]rune(line)), usualCols)
	}
	out.Reset()
	plain := &progress{out: &out, text: pulling(false, 50<<20, img)}
	plain.show(0, 3*time.Second)
	plain.set("more")
	plain.show(1, 4*time.Second)
	if want := `creel: pulling r.test/x\x1b[2J:1: 25%, 50M of 200M (3 s)` + "\n"; out.String() != want {
		t.Errorf("without a terminal: %q, want %q", out.String(), want)
	}
}

// TestPullPart: creel executes its part, and that has one verb.
func TestPullPart(t *testing.T) {
	open := func(context.Context, PullOptions) (*RemoteImage, error) {
		t.Error("a registry was asked")
		return nil, context.Canceled
	}
	for _, tt := range []struct {
		line string
		code int
		says string
	}{
		{"image pull", 2, "usage: creel image pull"},
		{"image pull a b", 2, "usage: creel image pull"},
		{"image pull --tls-verify=maybe a", 2, "invalid argument"},
		{"image pull --all a", 2, "unknown flag"},
		{"image ls", 2, ""},
		{"ps", 2, `unknown verb "ps"`},
		{"--socket /nowhere/creel.sock image pull r.test/x", 1, "/nowhere/creel.sock"},
	} {
		var out, errOut bytes.Buffer
		code := MainPull(t.Context(), strings.Fields(tt.line), Stdio{Out: &out, Err: &errOut}, open)
		if code != tt.code || !strings.Contains(errOut.String(), tt.says) || out.Len() > 0 {
			t.Errorf("%s: code %d, %q and %q; want %d, %q", tt.line, code, out.String(), errOut.String(), tt.code, tt.says)
		}
	}
	var errOut bytes.Buffer
	if code := Main(t.Context(), []string{"image", "pull", "r.test/x"}, Stdio{Err: &errOut}); code != 1 || !strings.Contains(errOut.String(), "install creel again") {
		t.Errorf("without creel-pull: %d, %q", code, errOut.String())
	}
}
