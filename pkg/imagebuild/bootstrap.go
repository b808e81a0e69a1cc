package imagebuild

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// toolDirs is where Debian installs; the caller's PATH is not searched, so
// that what runs here as root is what the distribution shipped.
var toolDirs = []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"}

func findTool(name string) (string, error) {
	for _, d := range toolDirs {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed; run: apt-get install %s", name, name)
}

// unnamedTemp opens a file that has no name and so leaves nothing behind.
func unnamedTemp(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "creel-image")), nil
	}
	// Some file systems (overlay before 6.3, NFS) have no O_TMPFILE.
	f, err := os.CreateTemp(dir, "creel-image-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file: %w; set TMPDIR to a directory with 2 GiB free", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("temporary file: %w", err)
	}
	return f, nil
}

// excluded never reaches the image. Licences stay, because an image that is
// passed on must carry them.
var excluded = []string{
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/locale/*",
	"path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/bash-completion/*",
}

// bootstrap runs mmdebstrap and leaves the system's tar in out.
func bootstrap(ctx context.Context, opts Options, out *os.File) error {
	tool, err := findTool("mmdebstrap")
	if err != nil {
		return err
	}
	lines, err := sourceLines(opts)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, bootstrapArgs(opts, os.Geteuid() == 0, lines)...)
	cmd.Env = bootstrapEnv(opts)
	cmd.Stdout = out
	// It removes its scratch directory when asked to end, and not when killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("mmdebstrap: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("mmdebstrap: %w", err)
	}
	last := relay(stderr, opts.Progress)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("mmdebstrap: %w: %s", err, strings.Join(last, "; "))
	}
	return nil
}

func bootstrapArgs(opts Options, root bool, lines []string) []string {
	mode := "unshare" // a user namespace of the caller's subordinate ids
	if root {
		mode = "root"
	}
	args := []string{
		"--mode=" + mode,
		"--variant=essential", // no APT inside: an agent could not use it
		"--format=tar",
		"--architectures=" + opts.Arch,
		"--components=main",
		`--aptopt=APT::Install-Recommends "false"`,
		`--aptopt=Acquire::Retries "3"`,
		"--include=" + strings.Join(opts.Packages, ","),
	}
	for _, e := range excluded {
		args = append(args, "--dpkgopt="+e)
	}
	args = append(args, opts.Suite, "-")
	return append(args, lines...)
}

func bootstrapEnv(opts Options) []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"TMPDIR=" + opts.TempDir,
		// Without a fixed seed the order inside byte-compiled sets differs each time.
		"PYTHONHASHSEED=0",
	}
	if !opts.Epoch.IsZero() {
		env = append(env, "SOURCE_DATE_EPOCH="+strconv.FormatInt(opts.Epoch.Unix(), 10))
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HOME"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// relay passes mmdebstrap's own steps on and keeps the last lines, which say
// why when it fails.
func relay(r io.Reader, progress func(string)) []string {
	const keep = 5
	var last []string
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" {
			continue
		}
		if last = append(last, line); len(last) > keep {
			last = last[1:]
		}
		if step, ok := strings.CutPrefix(line, "I: "); ok {
			progress(step)
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		_, _ = io.Copy(io.Discard, r) // keep the pipe from filling up
	}
	return last
}
