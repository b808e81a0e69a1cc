package e2e_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOpenClaw is what a gateway's user has of creel, from the first command of
// an agent to the end of a gateway. One gateway and one daemon are for all,
// because a start of OpenClaw takes a quarter of a minute.
func TestOpenClaw(t *testing.T) {
	w := newWorld(t, 15*time.Minute)
	g := newGateway(t, w, "one")
	g.install(filepath.Join(w.inst, "creel-openclaw.tgz"), w.plugin())
	g.start()
	t.Cleanup(g.stop)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *world, *gateway)
	}{
		{"exec", testExec},
		{"process", testProcess},
		{"files", testFiles},
		{"spawn", testSpawn},
		{"refused", testRefused},
		{"workspace", testWorkspace},
		{"secret", testSecret},
		{"daemon", testDaemon},
		{"gateway", testGateway},
		{"cli", testCLI},
	} {
		ok := t.Run(tt.name, func(t *testing.T) { tt.run(t, w, g) })
		if !ok {
			t.Logf("the end of the gateway's log:\n%s", g.logTail(15))
			if dir := os.Getenv("CREEL_TEST_LOGS"); dir != "" {
				_ = os.WriteFile(filepath.Join(dir, tt.name+".log"), []byte(g.logTail(1<<20)), 0o600)
			}
		}
		w.clear(t)
	}
	g.stop()
	if r := w.relays(); len(r) > 0 {
		t.Errorf("relays are left: %q", r)
	}
	w.NothingLeft()
	owned(t, g.Dir)
}
