package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startContainerd starts a containerd of somebody else's: not by creeld, and
// in the host's mount namespace or, blind, in one of its own. Its files are
// where the lab looks for them.
func (l *Lab) startContainerd(blind bool) {
	l.tb.Helper()
	state := filepath.Join(l.Dir, "run", "containerd")
	if err := os.MkdirAll(state, 0o711); err != nil {
		l.tb.Fatal(err)
	}
	socket := l.containerdSocket()
	config := filepath.Join(state, "containerd.toml")
	l.write(config, fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart"]
[grpc]
address = %q
[ttrpc]
address = %q
`, filepath.Join(l.Dir, "containerd"), filepath.Join(state, "state"), socket, socket+".ttrpc"))
	cmd := exec.CommandContext(context.Background(), filepath.Join(l.Bin, "containerd"), "--config", config)
	cmd.Env = []string{"PATH=" + l.Bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if blind {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // which makes it private, too
	}
	if err := cmd.Start(); err != nil {
		l.tb.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	l.Eventually("containerd listens", 60*time.Second, func() error {
		_, err := os.Stat(socket)
		return err
	})
}

// withoutContainerd is a directory with all that creeld runs but containerd
// and its shim, which are not its own.
func (l *Lab) withoutContainerd() string {
	l.tb.Helper()
	dir := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		l.tb.Fatal(err)
	}
	for _, name := range []string{"crun", "runc", "creel-init", "creel-egress"} {
		if err := os.Symlink(filepath.Join(l.Bin, name), filepath.Join(dir, name)); err != nil {
			l.tb.Fatal(err)
		}
	}
	return dir
}

func (l *Lab) containerdSocket() string {
	return filepath.Join(l.Dir, "run", "containerd", "containerd.sock")
}
