package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is one line of tests.txt.
type entry struct {
	pkg     string // "./integration/vm/target"
	name    string // its directory on the payload disk
	timeout time.Duration
	regex   string
}

// parseTests reads tests.txt: PACKAGE TIMEOUT REGEX, "#" begins a comment line.
func parseTests(r io.Reader) ([]entry, error) {
	var entries []entry
	var errs []error
	seen := map[string]bool{}
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 || !strings.HasPrefix(f[0], "./") {
			errs = append(errs, fmt.Errorf("line %d: %q is not ./PACKAGE TIMEOUT REGEX", n, line))
			continue
		}
		d, err := time.ParseDuration(f[1])
		if err != nil || d < time.Second {
			errs = append(errs, fmt.Errorf("line %d: %q is no timeout of a second or more", n, f[1]))
			continue
		}
		e := entry{pkg: f[0], timeout: d, regex: f[2], name: strings.ReplaceAll(path.Clean(f[0]), "/", "-")}
		for i := 2; seen[e.name]; i++ {
			e.name = fmt.Sprintf("%s.%d", strings.ReplaceAll(path.Clean(f[0]), "/", "-"), i)
		}
		seen[e.name] = true
		entries = append(entries, e)
	}
	errs = append(errs, sc.Err())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("no tests are listed")
	}
	return entries, nil
}

// narrow keeps one package's lines, for work on its tests. An empty name keeps
// all; a regex then replaces the listed ones, in a single line.
func narrow(entries []entry, pkg, regex string) ([]entry, error) {
	if pkg == "" {
		if regex != "" {
			return nil, errors.New("-run needs -only")
		}
		return entries, nil
	}
	entries = slices.DeleteFunc(entries, func(e entry) bool { return e.pkg != pkg })
	if len(entries) == 0 {
		return nil, fmt.Errorf("package %s is not listed", pkg)
	}
	if regex != "" {
		entries = entries[:1]
		entries[0].regex = regex
	}
	return entries, nil
}

// rootKey names the boot disk after what it is made from.
func rootKey(repo string) (string, error) {
	h := sha256.New()
	for _, f := range []string{"root.sh", "guest/creel-test.service"} {
		data, err := os.ReadFile(filepath.Join(repo, "integration", "vm", f))
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// prepareQEMU returns the first words of the emulator's command line.
func (l *layout) prepareQEMU(ctx context.Context, floor string) ([]string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.repo, "integration", "vm", "qemu.sh"), floor)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("qemu.sh: %w", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}

// prepareRoot makes the boot disk, unless this very one is there already.
func (l *layout) prepareRoot(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(l.root, "root.img")); err == nil {
		return nil
	}
	old, err := filepath.Glob(filepath.Join(filepath.Dir(l.root), l.suite+"-*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return l.command(ctx, nil, filepath.Join(l.repo, "integration", "vm", "root.sh"), l.suite, l.root)
}

// preparePayload makes the disk with our part of it all: bin/, the tests, the
// base image, and with service what "make install" lays out. It also makes an
// empty disk for /var/lib/creel.
func (l *layout) preparePayload(ctx context.Context, o options) ([]entry, error) {
	f, err := os.Open(filepath.Join(l.repo, "integration", "vm", "tests.txt"))
	if err != nil {
		return nil, err
	}
	entries, err := parseTests(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("tests.txt: %w", err)
	}
	if entries, err = narrow(entries, o.only, o.tests); err != nil {
		return nil, fmt.Errorf("tests.txt: %w", err)
	}
	dir := filepath.Join(l.work, "payload")
	if err := l.fillPayload(ctx, dir, entries, o.service); err != nil {
		return nil, err
	}
	size, err := treeSize(dir)
	if err != nil {
		return nil, err
	}
	if err := l.makeDisk(ctx, "payload.img", size+size/5+64<<20, "-d", dir); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	// With project quotas, as an operator may have them: creel uses none
	// (docs/adr/0009) and is not to stumble over them. The file is sparse.
	return entries, l.makeDisk(ctx, "state.img", 6<<30, "-O", "quota,project", "-E", "quotatype=prjquota")
}

func (l *layout) fillPayload(ctx context.Context, dir string, entries []entry, service bool) error {
	if err := os.MkdirAll(filepath.Join(dir, "tests"), 0o755); err != nil {
		return err
	}
	guest := filepath.Join(l.repo, "integration", "vm", "guest", "guest.sh")
	if err := l.command(ctx, nil, "/bin/cp", "-a", filepath.Join(l.repo, "bin"), guest, dir); err != nil {
		return err
	}
	env := "export CREEL_TEST_VM=1 CREEL_BIN=/opt/creel/bin HOME=/root\n"
	needs := "target-vm,root,cgroup-v2,systemd,idmap,bin,landlock,bpf-lsm"
	image := filepath.Join(l.repo, ".cache", "images", "base.oci.tar")
	switch _, err := os.Stat(image); {
	case err == nil:
		if err := os.Link(image, filepath.Join(dir, "base.oci.tar")); err != nil {
			return err
		}
		env += "export CREEL_BASE_IMAGE=/opt/creel/base.oci.tar\n"
		needs += ",base-image"
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case service:
		return fmt.Errorf("%w; run \"make image\"", err)
	}
	if service {
		install := filepath.Join(l.repo, "hack", "install.sh")
		if err := l.command(ctx, nil, install, filepath.Join(dir, "install"), "/usr/local"); err != nil {
			return err
		}
		env += "export CREEL_SOCKET=/run/creel/creel.sock\n"
		needs += ",service"
	}
	env += "export CREEL_TEST_REQUIRE=" + needs + "\n"
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte(env), 0o644); err != nil {
		return err
	}

	var manifest strings.Builder
	built := map[string]string{} // by package
	for _, e := range entries {
		to := filepath.Join(dir, "tests", e.name)
		var err error
		if from, ok := built[e.pkg]; ok {
			err = l.command(ctx, nil, "/bin/cp", "-al", from, to)
		} else {
			err = l.buildTest(ctx, to, e)
		}
		if err != nil {
			return err
		}
		built[e.pkg] = to
		fmt.Fprintf(&manifest, "%s %d %s\n", e.name, int(e.timeout.Seconds()), e.regex)
	}
	return os.WriteFile(filepath.Join(dir, "tests", "manifest"), []byte(manifest.String()), 0o644)
}

// buildTest compiles one test binary and lays the package's testdata beside it,
// where a test expects it.
func (l *layout) buildTest(ctx context.Context, dir string, e entry) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "test")
	if err := l.command(ctx, []string{"CGO_ENABLED=0"}, goTool, "test", "-c", "-ldflags=-s -w", "-o", out, e.pkg); err != nil {
		return err
	}
	if _, err := os.Stat(out); err != nil {
		return fmt.Errorf("%s has no tests: %w", e.pkg, err)
	}
	data := filepath.Join(l.repo, e.pkg, "testdata")
	if _, err := os.Stat(data); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return l.command(ctx, nil, "/bin/cp", "-a", data, dir)
}

// makeDisk makes an ext4 image of that many bytes.
func (l *layout) makeDisk(ctx context.Context, name string, size int64, args ...string) error {
	img := filepath.Join(l.work, name)
	f, err := os.OpenFile(img, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	args = append([]string{"-q", "-F", "-t", "ext4"}, args...)
	return l.command(ctx, nil, "/sbin/mke2fs", append(args, img)...)
}

// command runs a program in the checkout; its output is shown.
func (l *layout) command(ctx context.Context, env []string, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = l.repo
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return nil
}

func treeSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
