package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/creel-sandbox/creel/pkg/api"
)

const (
	userName = "creel-demo"
	// scratch is on disk: before Linux 6.3 a tmpfs, as /run is, cannot be
	// id-mapped, and /run is often noexec. Short, for the shims' sockets.
	scratch = "/var/lib/creel-demo"
	// sandboxName is the demo's only one.
	sandboxName = "web-traffic"
)

func workspace() string { return filepath.Join(scratch, "home", "work") }

// account is the user that the demo made.
type account struct{ uid, gid uint32 }

// makeUser makes an ordinary user without any right but its own group, which
// may use the socket, and gives it a workspace with the example.
func (d *demo) makeUser(ctx context.Context) error {
	// Not MkdirAll: whatever is there already is not the demo's.
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	home := filepath.Join(scratch, "home")
	if out, err := exec.CommandContext(ctx, "/usr/sbin/useradd", "--system", "--user-group", "--no-create-home",
		"--home-dir", home, "--shell", "/usr/sbin/nologin", userName).CombinedOutput(); err != nil {
		return fmt.Errorf("useradd: %w: %s", err, strings.TrimSpace(string(out)))
	}
	acc, err := lookup()
	if err != nil {
		return err
	}
	d.user = acc
	for _, dir := range []string{home, workspace()} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, int(acc.uid), int(acc.gid))); err != nil {
			return err
		}
	}
	if err := d.copyExample(); err != nil {
		return err
	}
	d.tell.say("    %s: uid %d, gid %d, no other group; workspace %s", userName, acc.uid, acc.gid, workspace())
	return nil
}

func lookup() (*account, error) {
	u, err := user.Lookup(userName)
	if err != nil {
		return nil, err
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uerr, gerr); err != nil {
		return nil, err
	}
	if u.HomeDir != filepath.Join(scratch, "home") || uid == 0 {
		return nil, fmt.Errorf("there is a user %s that the demo did not make (home %s); it is left alone, and the demo cannot run", userName, u.HomeDir)
	}
	return &account{uint32(uid), uint32(gid)}, nil
}

// removeUser removes what makeUser made; nothing there is success.
func removeUser(ctx context.Context) error {
	_, err := lookup()
	if errors.As(err, new(user.UnknownUserError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "/usr/sbin/userdel", userName).CombinedOutput(); err != nil {
		return fmt.Errorf("userdel: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (d *demo) copyExample() error {
	files, err := os.ReadDir(d.example)
	if err != nil {
		return err
	}
	work, err := os.OpenRoot(workspace()) // the user's directory: no link of its is followed out
	if err != nil {
		return err
	}
	defer work.Close()
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(d.example, f.Name()))
		if err != nil {
			return err
		}
		out, err := work.OpenFile(f.Name(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = out.Write(data)
		if err := errors.Join(err, out.Chown(int(d.user.uid), int(d.user.gid)), out.Close()); err != nil {
			return err
		}
	}
	return nil
}

// creel runs the command line as the user: its uid, its group, an empty
// environment but for the socket, and the workspace as directory.
func (d *demo) creel(ctx context.Context, args ...string) error {
	d.tell.say("    %s$ creel %s\n", userName, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(scratch, "bin", "creel"), args...)
	cmd.Dir = workspace()
	cmd.Env = []string{"CREEL_SOCKET=" + socketPath(), "HOME=" + filepath.Join(scratch, "home")}
	cmd.Stdout, cmd.Stderr = d.tell, d.tell
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: d.user.uid, Gid: d.user.gid, Groups: []uint32{d.user.gid}},
		Setpgid:    true, // Ctrl-C is for the demo, which then ends this
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = waitDelay
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("creel %s: %w", args[0], err)
	}
	return nil
}

func (d *demo) runJob(ctx context.Context) error {
	return d.creel(ctx, "run", "--name", sandboxName, "-v", workspace()+":/workspace", "--", "python3", "analyse.py")
}

func (d *demo) showEvidence(ctx context.Context) error {
	return d.creel(ctx, "evidence", sandboxName)
}

func (d *demo) removeSandbox(ctx context.Context) error {
	if err := d.creel(ctx, "rm", sandboxName); err != nil {
		return err
	}
	doctor, err := d.client.Doctor(ctx, "", "")
	if err != nil {
		return err
	}
	if len(doctor.Leftovers) > 0 {
		return fmt.Errorf("creel doctor finds leftovers: %s", strings.Join(doctor.Leftovers, ", "))
	}
	d.tell.say("    creel doctor: no leftovers")
	return nil
}

// showFiles lists the workspace as the host sees it, and the report's head.
func (d *demo) showFiles(context.Context) error {
	files, err := os.ReadDir(workspace())
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no owner", f.Name())
		}
		owner := strconv.FormatUint(uint64(st.Uid), 10)
		if st.Uid == d.user.uid {
			owner = userName
		}
		d.tell.say("    %s  %-12s %6d  %s", info.Mode(), owner, info.Size(), f.Name())
		if st.Uid != d.user.uid || st.Gid != d.user.gid {
			return fmt.Errorf("%s belongs to %d:%d, not to the user", f.Name(), st.Uid, st.Gid)
		}
	}
	report, err := os.ReadFile(filepath.Join(workspace(), "report.md"))
	if err != nil {
		return err
	}
	d.tell.say("\n    the first lines of report.md:")
	lines := strings.SplitAfterN(string(report), "\n", 7)
	for _, l := range lines[:min(len(lines), 6)] {
		d.tell.say("    | %s", strings.TrimRight(l, "\n"))
	}
	return nil
}

func (d *demo) showLimits(ctx context.Context) error {
	sb, err := d.client.Inspect(ctx, sandboxName)
	if err != nil {
		return err
	}
	l := sb.Limits
	unset := func(v api.Duration) string {
		if v == 0 {
			return "none"
		}
		return v.String()
	}
	for _, row := range [][2]string{
		{"memory", l.Memory.String() + ", no swap"},
		{"processors", strconv.FormatFloat(l.CPUs, 'g', -1, 64)},
		{"processes and threads", strconv.FormatInt(l.Pids, 10)},
		{"open files", strconv.FormatInt(l.Files, 10)},
		{"temporary files", l.Tmp.String()},
		{"output", l.OutputRate.String() + " a second"},
		{"time in all", unset(l.TTL)},
		{"time without work", unset(l.Idle)},
		{"host uids", fmt.Sprintf("%d to %d, its own", sb.HostUID, sb.HostUID+65535)},
	} {
		d.tell.say("    %-24s %s", row[0], row[1])
	}
	return nil
}
