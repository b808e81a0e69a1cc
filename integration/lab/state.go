package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// StateDir is the daemon's state directory.
func (l *Lab) StateDir() string { return filepath.Join(l.Dir, "state") }

// makeState mounts an ext4 of its own there, from a file beside it. unmountAll
// takes it away, and with the mount goes its loop device.
func (l *Lab) makeState(mib int) {
	l.tb.Helper()
	kerneltest.Require(l.tb, kerneltest.Need{Name: "loop", Probe: func() error {
		_, err := os.Stat("/dev/loop-control")
		return err
	}})
	image := filepath.Join(l.Dir, "state.img")
	l.write(image, "")
	if err := os.Truncate(image, int64(mib)<<20); err != nil {
		l.tb.Fatal(err)
	}
	if err := os.Mkdir(l.StateDir(), 0o711); err != nil {
		l.tb.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mount", "-o", "loop", image, l.StateDir()},
	} {
		cmd := exec.CommandContext(l.tb.Context(), args[0], args[1:]...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			l.tb.Fatal(fmt.Errorf("%q: %w: %s", args, err, out))
		}
	}
}
