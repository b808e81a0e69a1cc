package inside

import (
	"syscall"
	"unsafe"
)

// maxDepth is how many directories remover has open at a time. Deeper ones are
// moved up first, so that no tree is too deep for the descriptors there are.
const maxDepth = 32

func remove(path string, recursive bool) error {
	err := unlinkAt(-1, path, 0)
	if err != syscall.EISDIR && err != syscall.EPERM {
		return result(err)
	}
	if !recursive {
		return result(unlinkAt(-1, path, atRemoveDir))
	}
	fd, err2 := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err2 != nil {
		return err2
	}
	r := remover{top: fd}
	for {
		// Names that were moved up meanwhile, or that the directory did not
		// give because it was changed, are found by another pass.
		before := r.count
		e := r.empty(fd, 0)
		if _, err := syscall.Seek(fd, 0, 0); err != nil {
			closeFD(fd)
			return err
		}
		if r.count == before || e != 0 {
			closeFD(fd)
			if e != 0 {
				return e
			}
			return result(unlinkAt(-1, path, atRemoveDir))
		}
	}
}

func result(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

const (
	atRemoveDir     = 0x200 // AT_REMOVEDIR
	renameNoReplace = 1
)

func unlinkAt(dir int, name string, flags uintptr) syscall.Errno {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return syscall.EINVAL
	}
	at := uintptr(dir)
	if dir < 0 {
		at = atFDCWD
	}
	_, _, e := syscall.Syscall(syscall.SYS_UNLINKAT, at, uintptr(unsafe.Pointer(p)), flags)
	return e
}

type remover struct {
	top   int // the directory whose contents go
	count int // what was removed or moved up
	moved int
}

// empty removes what is in fd. It goes on after an error and gives the first.
func (r *remover) empty(fd, depth int) (first syscall.Errno) {
	err := eachName(fd, func(name string) bool {
		e := unlinkAt(fd, name, 0)
		if e == syscall.EISDIR || e == syscall.EPERM {
			e = r.directory(fd, name, depth)
		}
		switch {
		case e == 0:
			r.count++
		case e != syscall.ENOENT && first == 0:
			first = e
		}
		return true
	})
	if err != nil && first == 0 {
		first = errno(err)
	}
	return first
}

func (r *remover) directory(parent int, name string, depth int) syscall.Errno {
	if depth >= maxDepth {
		return r.moveUp(parent, name)
	}
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return syscall.EINVAL
	}
	const flags = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	fd, _, e := syscall.Syscall6(syscall.SYS_OPENAT, uintptr(parent), uintptr(unsafe.Pointer(p)), flags, 0, 0, 0)
	if e != 0 {
		return e
	}
	first := r.empty(int(fd), depth+1)
	closeFD(int(fd))
	e = unlinkAt(parent, name, atRemoveDir)
	if e == syscall.ENOTEMPTY {
		if first != 0 {
			return first
		}
		// The directory gave not all names while it was changed: another pass.
		r.count++
		return 0
	}
	return e
}

// moveUp makes a deep directory one of the top directory's own.
func (r *remover) moveUp(parent int, name string) syscall.Errno {
	from, err := syscall.BytePtrFromString(name)
	if err != nil {
		return syscall.EINVAL
	}
	if r.moved > 1<<24 {
		return syscall.ELOOP
	}
	r.moved++
	to, err := syscall.BytePtrFromString(tempName())
	if err != nil {
		return syscall.EINVAL
	}
	_, _, e := syscall.Syscall6(sysRenameat2, uintptr(parent), uintptr(unsafe.Pointer(from)), uintptr(r.top), uintptr(unsafe.Pointer(to)), renameNoReplace, 0)
	return e
}
