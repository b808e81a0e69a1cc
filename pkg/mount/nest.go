package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// Place is a staged mount and where the sandbox has it.
type Place struct {
	Staged string // as Target of [Request] and [Volume]
	Target string // absolute and clean; no two are equal

	// Through are the ids of mounts that are attached in it already, and in which
	// others' targets may lie (pkg/protect).
	Through []uint64
}

// Nest attaches each staged mount whose target lies in another's there: in the
// tree staged for the one that holds it most closely. Afterwards each staged
// tree is what the sandbox sees at its target, and to bind the outermost
// recursively is to have all. What is attached are clones. So every mount
// stays at its own path, and what is attached in a tree goes when that is
// unmounted, wherever others have moved the mount point meanwhile.
//
// The mount point must be there, as a directory, with no link on the way:
// nothing is made. If not, the error is invalid_argument, with mounts[i].target
// as its field for the i-th of ps. It is looked up as root, who on an id-mapped
// mount may pass the directories of mapped ids and those that are open to all,
// and attached to by descriptor. Others may move it at any time, and the mount
// with it: whether it is where it should be, the proof reads in the sandbox.
// After an error some may be attached; [Cleanup] takes them away.
func Nest(ps []Place) error {
	order := make([]int, len(ps))
	for i := range ps {
		order[i] = i
	}
	// The innermost first: it is part of what is cloned next.
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(ps[b].Target, ps[a].Target) })
	for _, i := range order {
		outer := -1
		for j, o := range ps {
			if strings.HasPrefix(ps[i].Target, o.Target+"/") && (outer < 0 || len(o.Target) > len(ps[outer].Target)) {
				outer = j
			}
		}
		if outer < 0 {
			continue
		}
		err := attachIn(ps[outer], ps[i])
		if why := notThere(err); why != "" {
			e := api.Errorf(api.CodeInvalid, "the request has 1 problem(s)").
				WithHint("make the directory first: creel makes nothing in what it mounts")
			e.Problems = []api.Problem{{
				Field: fmt.Sprintf("mounts[%d].target", i), Value: ps[i].Target,
				Want: fmt.Sprintf("a directory that is there in what is mounted at %s, without symbolic links on the way: %s", ps[outer].Target, why),
			}}
			return e
		}
		if err != nil {
			return fmt.Errorf("mount %s in %s: %w", ps[i].Target, ps[outer].Target, err)
		}
	}
	return nil
}

// notThere says what is wrong with a mount point; it is empty for other errors.
func notThere(err error) string {
	for e, why := range map[error]string{
		unix.ENOENT: "it does not exist", unix.ENOTDIR: "it is not a directory", unix.ELOOP: "there is a symbolic link",
		unix.EACCES: "creeld may not look it up", unix.ENAMETOOLONG: "its name is too long",
		unix.EXDEV: "it was moved meanwhile, or is another mount's",
	} {
		if errors.Is(err, e) {
			return why
		}
	}
	return ""
}

// attachIn attaches a clone of all that is staged for inner.
func attachIn(outer, inner Place) error {
	root, err := unix.Open(outer.Staged, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("staged mount: %v", err) //nolint:errorlint // not the mount point's
	}
	defer unix.Close(root)
	rel, err := filepath.Rel(outer.Target, inner.Target)
	if err != nil {
		return err
	}
	point, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | outer.resolve(),
	})
	if err != nil {
		return err
	}
	defer unix.Close(point)
	if err := outer.holds(root, point); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, inner.Staged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone the staged mount: %v", err) //nolint:errorlint // the same
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach it: %w", err) // ENOENT: the mount point was removed since
	}
	return nil
}

// resolve keeps the look-up on the tree's own mount: another in the way would hold
// the inner one more closely, and be outer.
func (p Place) resolve() uint64 {
	if len(p.Through) > 0 {
		return 0 // holds asks where it ended
	}
	return unix.RESOLVE_NO_XDEV
}

// holds says whether a point is on the tree's own mount or one of Through.
func (p Place) holds(root, point int) error {
	own, err := mountID(root)
	if err != nil {
		return err
	}
	at, err := mountID(point)
	if err != nil {
		return err
	}
	if at != own && !slices.Contains(p.Through, at) {
		return unix.EXDEV
	}
	return nil
}
