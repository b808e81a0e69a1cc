package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// Versions are the versions of what creel stands on.
type Versions struct {
	Kernel     string // uname -r
	Containerd string // empty when it was not asked
	Crun       string // empty when it is not there
	Runc       string // empty when it is not there
}

// line is one supported series of versions and its first good member.
type line struct {
	first, last string // the series: from first up to, but without, last
	min         string
	why         string
}

// containerdGate has, for each series, the first version without the holes
// that an image's metadata opens to host root. Series without an entry below
// the newest are refused.
var containerdGate = []line{
	{"2.0", "2.1", "2.0.10", "CVE-2026-53488: an image label becomes a host command; CVE-2026-46680: an image's user becomes root"},
	{"2.1", "2.2", "2.1.9", "CVE-2026-53488: an image label becomes a host command"},
	{"2.2", "2.3", "2.2.5", "CVE-2026-53488: an image label becomes a host command; CVE-2026-46680: an image's user becomes root"},
	{"2.3", "2.4", "2.3.2", "CVE-2026-53488: an image label becomes a host command; CVE-2026-46680: an image's user becomes root"},
	{"2.4", "", "2.4.0", "CVE-2026-53488: pre-releases may lack the fix"},
}

// runcGate likewise. CVE-2026-41579 has no fix in 1.2; there Import's own
// check of /dev stands alone.
var runcGate = []line{
	{"1.2", "1.3", "1.2.8", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: mount and procfs races lead out of the container"},
	{"1.3", "1.4", "1.3.6", "CVE-2026-41579: an image's /dev may be a link; and CVE-2025-31133, CVE-2025-52881"},
	{"1.4", "1.5", "1.4.3", "CVE-2026-41579: an image's /dev may be a link; and CVE-2025-31133, CVE-2025-52881"},
	{"1.5", "", "1.5.2", "device programs are corrupted on Linux 6.17 to 7.1 by older ones"},
}

// crunGate: 1.20 fixed CVE-2025-24965 (a file outside the root file system);
// 1.21 is the oldest that is tested with creel and fixes cgroup v1 cpusets.
var crunGate = []line{
	{"1.0", "", "1.21", "CVE-2025-24965: a handler writes outside the root file system; older ones are not tested"},
}

// kernelGate: 6.1 is Debian 12's. Below 5.19 overlay layers cannot be
// id-mapped, below 5.12 no mount can.
var kernelGate = []line{
	{"6.1", "", "6.1", "id-mapped overlay layers, socket lookup programs and pidfds as creel uses them"},
}

// Kernels on which runc before runcOnBugged corrupts device programs.
const (
	buggedFrom   = "6.17"
	buggedBefore = "7.2"
	runcOnBugged = "1.5.2"
)

// CheckVersions refuses a kernel or an OCI runtime below the minimum, or
// between minima, and gives the reason. All faults are reported at once. A
// runtime that is not there is no fault, but one must be. Of containerd
// nothing is asked: which one is used, CheckContainerd's caller knows.
func CheckVersions(v Versions) error {
	errs := []error{check("kernel", v.Kernel, kernelGate), v.CheckRuntime("crun"), v.CheckRuntime("runc")}
	if v.Crun == "" && v.Runc == "" {
		errs = append(errs, errors.New("neither crun nor runc is installed; run \"make tools\" or install one"))
	}
	return unsupported(errs...)
}

// CheckContainerd refuses a containerd as CheckVersions does the rest.
func CheckContainerd(have string) error {
	return unsupported(check("containerd", have, containerdGate))
}

// CheckRuntime refuses crun or runc; one that is not there is no fault.
func (v Versions) CheckRuntime(name string) error {
	switch {
	case name == "crun" && v.Crun != "":
		return check(name, v.Crun, crunGate)
	case name != "runc" || v.Runc == "":
		return nil
	}
	err := check(name, v.Runc, runcGate)
	if compare(v.Kernel, buggedFrom) >= 0 && compare(v.Kernel, buggedBefore) < 0 && compare(v.Runc, runcOnBugged) < 0 {
		err = errors.Join(err, fmt.Errorf("runc %s on kernel %s: want %s or later (it corrupts device programs there)", v.Runc, v.Kernel, runcOnBugged))
	}
	return err
}

func unsupported(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return api.Errorf(api.CodeUnsupportedHost, "%w", err)
	}
	return nil
}

// check finds the series of a version and compares it with its minimum.
func check(what, have string, gate []line) error {
	if _, ok := parse(have); !ok {
		return fmt.Errorf("%s version %q is not understood", what, have)
	}
	for _, l := range gate {
		if compare(have, l.first) < 0 && !sameSeries(have, l.first) {
			break
		}
		if l.last != "" && compare(have, l.last) >= 0 || l.last != "" && sameSeries(have, l.last) {
			continue
		}
		if compare(have, l.min) < 0 {
			return fmt.Errorf("%s %s: want %s or later (%s)", what, have, l.min, l.why)
		}
		return nil
	}
	return fmt.Errorf("%s %s: want %s or later (%s)", what, have, gate[0].min, gate[0].why)
}

// ReadVersions asks the kernel and the programs in bin, of which containerd
// only if it is the one that is used (own). What has answered is in the result
// beside the error.
func ReadVersions(ctx context.Context, bin string, own bool) (Versions, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Versions{}, fmt.Errorf("uname: %w", err)
	}
	v := Versions{Kernel: unix.ByteSliceToString(uts.Release[:])}
	var errs []error
	ask := func(name string, to *string, needed bool) {
		var err error
		*to, err = programVersion(ctx, filepath.Join(bin, name))
		if err != nil && (needed || !errors.Is(err, os.ErrNotExist)) {
			errs = append(errs, err)
		}
	}
	if own {
		ask("containerd", &v.Containerd, true)
	}
	ask("crun", &v.Crun, false)
	ask("runc", &v.Runc, false)
	return v, errors.Join(errs...)
}

// versionWord matches "v2.4.2" or "1.21" among the words of a first line.
var versionWord = regexp.MustCompile(`^v?[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*$`)

func programVersion(ctx context.Context, path string) (string, error) {
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{"PATH=" + filepath.Dir(path), "LC_ALL=C"}
	cmd.Dir = "/"
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	for _, w := range slices.Backward(strings.Fields(first)) {
		if versionWord.MatchString(w) {
			return trimV(w), nil
		}
	}
	return "", fmt.Errorf("%s --version: no version in %q", path, first)
}

// version is major, minor, patch and, for a pre-release, its name.
type version struct {
	n   [3]int
	pre string
}

// parse reads "2.4.2", "1.5.0-rc.3", "1.21", "6.18.44-fc-v657". What follows
// "+" or "~" is ignored; so is what follows "-" unless it names a
// pre-release: a distribution's suffix is not one.
func parse(s string) (version, bool) {
	s = trimV(s)
	s, _, _ = strings.Cut(s, "+")
	s, _, _ = strings.Cut(s, "~")
	num, suffix, _ := strings.Cut(s, "-")
	var v version
	parts := strings.Split(num, ".")
	if len(parts) < 2 {
		return v, false
	}
	for i, p := range parts[:min(len(parts), 3)] {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false
		}
		v.n[i] = n
	}
	for _, p := range []string{"rc", "alpha", "beta", "dev"} {
		if strings.HasPrefix(suffix, p) {
			v.pre = suffix
		}
	}
	return v, true
}

// compare orders two versions; one that is not understood is the least. A
// pre-release comes before its release.
func compare(a, b string) int {
	x, _ := parse(a)
	y, _ := parse(b)
	if c := slices.Compare(x.n[:], y.n[:]); c != 0 {
		return c
	}
	switch {
	case x.pre == y.pre:
		return 0
	case x.pre == "":
		return 1
	case y.pre == "":
		return -1
	}
	return strings.Compare(x.pre, y.pre)
}

// sameSeries compares major and minor only.
func sameSeries(a, b string) bool {
	x, okX := parse(a)
	y, okY := parse(b)
	return okX && okY && x.n[0] == y.n[0] && x.n[1] == y.n[1]
}
