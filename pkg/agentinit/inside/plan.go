package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	pathsBytes  = 64 << 10 // for all files that a PATH and a name give
	pathsMax    = 1024
	selfExe     = "/proc/self/exe"
	oomFile     = "/proc/self/oom_score_adj"
	oomScore    = "500"
)

// arena is the memory of the one plan that exists at a time. It is not on the
// heap: the garbage collector never looks at it and it never moves, so that
// it may hold addresses as numbers.
var arena struct {
	bytes [wire.MaxArgs + pathsBytes + 2*wire.MaxPath + 256]byte
	used  int
	argv  [wire.MaxStrings + 1]uintptr
	env   [wire.MaxStrings + 1]uintptr
	paths [pathsMax + 1]uintptr
	plan  plan
}

// cstr copies s with a NUL into the arena. It is nil when there is no room.
func cstr[S string | []byte](parts ...S) *byte {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	if n > len(arena.bytes)-arena.used {
		return nil
	}
	start := &arena.bytes[arena.used]
	for _, p := range parts {
		arena.used += copy(arena.bytes[arena.used:], p)
	}
	arena.bytes[arena.used] = 0
	arena.used++
	return start
}

func addr(p *byte) uintptr { return uintptr(unsafe.Pointer(p)) }

// newPlan makes the plan of s in the arena, without its descriptors. home is
// where it starts when s says no directory.
func newPlan(s *wire.Start) (*plan, syscall.Errno) {
	arena.used = 0
	p := &arena.plan
	*p = plan{tty: s.TTY, isolate: isolate, umask: uintptr(s.Umask), winsize: [4]uint16{s.Rows, s.Cols}}
	cwd := s.Cwd
	if len(cwd) == 0 {
		cwd = homeOf(s.Env)
	}
	p.cwd = cstr(cwd)
	p.oomPath, p.oomScore, p.oomLen = cstr(oomFile), cstr(oomScore), uintptr(len(oomScore))
	if !list(arena.argv[:], s.Argv) || !list(arena.env[:], s.Env) {
		return nil, syscall.E2BIG
	}
	p.argv, p.env, p.paths = &arena.argv[0], &arena.env[0], &arena.paths[0]
	if s.Internal {
		arena.paths[0], arena.paths[1] = addr(cstr(selfExe)), 0
		return p, fileOpArgv(s.Argv)
	}
	return p, search(s.Argv[0], s.Env)
}

func list(into []uintptr, from [][]byte) bool {
	if len(from) >= len(into) {
		return false
	}
	for i, b := range from {
		p := cstr(b)
		if p == nil {
			return false
		}
		into[i] = addr(p)
	}
	into[len(from)] = 0
	return true
}

// fileOpArgv puts the name by which this program knows that it is to do a
// file operation before its arguments.
func fileOpArgv(argv [][]byte) syscall.Errno {
	if len(argv)+2 > len(arena.argv) {
		return syscall.E2BIG
	}
	copy(arena.argv[1:], arena.argv[:len(argv)+1])
	arena.argv[0] = addr(cstr(FileOpName))
	if arena.argv[0] == 0 {
		return syscall.E2BIG
	}
	return 0
}

// search fills in the files that name stands for: itself when it has a slash,
// else one in each directory of env's PATH. An empty or relative directory
// there is left out: it would mean the current one.
func search(name []byte, env [][]byte) syscall.Errno {
	n := 0
	add := func(p *byte) bool {
		if p == nil || n == pathsMax {
			return false
		}
		arena.paths[n] = addr(p)
		n++
		arena.paths[n] = 0
		return true
	}
	arena.paths[0] = 0
	for _, c := range name {
		if c == '/' {
			if !add(cstr(name)) {
				return syscall.E2BIG
			}
			return 0
		}
	}
	dirs := lookup(env, "PATH")
	if dirs == nil {
		dirs = []byte(defaultPath)
	}
	for len(dirs) > 0 {
		i := 0
		for i < len(dirs) && dirs[i] != ':' {
			i++
		}
		if dir := dirs[:i]; i > 0 && dir[0] == '/' {
			if !add(cstr(dir, []byte{'/'}, name)) {
				return syscall.E2BIG
			}
		}
		dirs = dirs[min(i+1, len(dirs)):]
	}
	return 0
}

// lookup finds a variable; the last one counts, as in shells.
func lookup(env [][]byte, key string) (value []byte) {
	for _, e := range env {
		if len(e) > len(key) && e[len(key)] == '=' && string(e[:len(key)]) == key {
			value = e[len(key)+1:]
		}
	}
	return value
}

func homeOf(env [][]byte) []byte {
	if h := lookup(env, "HOME"); len(h) > 0 && len(h) <= wire.MaxPath {
		return h
	}
	return []byte("/")
}
