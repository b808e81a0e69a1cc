package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devNull is what /dev/null is whatever it is called: character device 1:3.
const devNull = "/dev/null"

func readFiles(r *report, p *proc, e Expect) {
	st, err := p.stat("exe")
	r.within(err, func() {
		r.check("exe", e.Exe.String(), FileID{st.Dev, st.Ino}.String())
	})
	root, err := p.stat("root")
	var host unix.Stat_t
	if err == nil {
		err = unix.Stat("/", &host)
	}
	r.within(err, func() {
		got := FileID{root.Dev, root.Ino}
		r.add("rootfs.own", "not the host's "+FileID{host.Dev, host.Ino}.String(), got.String(), got != FileID{host.Dev, host.Ino})
	})
	fds, err := openFDs(p)
	r.within(err, func() { checkFDs(r, fds, e.FDs) })
}

// String is "device MAJOR:MINOR inode N".
func (f FileID) String() string {
	return fmt.Sprintf("device %d:%d inode %d", unix.Major(f.Dev), unix.Minor(f.Dev), f.Ino)
}

func openFDs(p *proc) ([]FD, error) {
	nums, err := p.list("fd")
	if err != nil {
		return nil, err
	}
	slices.Sort(nums)
	out := make([]FD, 0, len(nums))
	for _, n := range nums {
		name := "fd/" + strconv.Itoa(n)
		target, err := p.readlink(name)
		if errors.Is(err, unix.ENOENT) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(target, "/null") {
			if target, err = nullOrNot(p, name, target); err != nil {
				return nil, err
			}
		}
		out = append(out, FD{n, target})
	}
	return out, nil
}

// nullOrNot keeps a file that is only called like the device apart from it.
func nullOrNot(p *proc, name, target string) (string, error) {
	st, err := p.stat(name)
	if err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
		return devNull, nil
	}
	return "not the null device: " + target, nil
}

// is says whether an open descriptor is of the expected kind.
func (f FD) is(want FD) bool {
	if want.Num >= 0 && want.Num != f.Num {
		return false
	}
	if kind, ok := strings.CutSuffix(want.Target, ":"); ok {
		return strings.HasPrefix(f.Target, kind+":[")
	}
	return f.Target == want.Target
}

func (f FD) String() string {
	if f.Num < 0 {
		return "any=" + f.Target
	}
	return strconv.Itoa(f.Num) + "=" + f.Target
}

func checkFDs(r *report, got, want []FD) {
	ok := true
	for _, g := range got {
		ok = ok && slices.ContainsFunc(want, g.is)
	}
	for _, w := range want {
		ok = ok && (w.Num < 0 || slices.ContainsFunc(got, func(g FD) bool { return g.is(w) }))
	}
	r.add("descriptors", joinFDs(want), joinFDs(got), ok)
}

func joinFDs(fds []FD) string {
	out := make([]string, len(fds))
	for i, f := range fds {
		out[i] = f.String()
	}
	return strings.Join(out, " ")
}

// Label is the security label of a process, "none" without a module that
// gives labels, as Expect.Label wants it.
func Label(pid int) (string, error) {
	p, err := openProc(pid)
	if err != nil {
		return "", err
	}
	defer p.close()
	return p.label()
}

func (p *proc) label() (string, error) {
	text, err := p.read("attr/current")
	// EINVAL is what a kernel without an active labelling module says.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return none, nil
	}
	return strings.TrimRight(text, "\x00\n"), err
}

// readLabel compares the label with that at launch. At launch itself there is
// nothing to compare it with: creel asks for no label, and what a process
// gets without asking is the policy of the host.
func readLabel(r *report, p *proc, e Expect) {
	label, err := p.label()
	r.within(err, func() {
		if e.Label == "" {
			r.add("lsm.label", "what the host's policy gives: creel asks for none", label, label != "")
			return
		}
		r.check("lsm.label", e.Label, label)
	})
}
