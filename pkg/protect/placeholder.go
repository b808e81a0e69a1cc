package protect

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/thread"
)

// Kind is of a placeholder.
type Kind string

// What there is. A socket, which nobody listens on, is for a file: git and other
// programs that walk a tree do not take it for one, but nothing can be made there.
const (
	Directory Kind = "directory"
	File      Kind = "file"
	Socket    Kind = "socket"
)

// Placeholder is something on the host in the place of what does not exist.
type Placeholder struct {
	Name string `json:"name"` // from the top of the mounted directory
	Kind Kind   `json:"kind"`
	Text string `json:"text,omitempty"` // of a file

	// Dev and Inode are zero until it is made: a record that has none may have
	// been overtaken by a crash.
	Dev   uint64 `json:"dev,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
}

func (p Placeholder) id() ID { return ID{p.Dev, p.Inode} }

// Made are the placeholders in one mounted directory.
type Made struct {
	Staged       string        `json:"staged"` // where it is attached for the sandbox
	Path         string        `json:"path"`   // of the directory as the host has it, or had it at the launch
	Dev          uint64        `json:"dev"`    // of the directory
	Inode        uint64        `json:"inode"`
	Placeholders []Placeholder `json:"placeholders"`
}

// User is who makes and removes placeholders: never root, who would do what the
// directory's owner cannot.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

func (u User) do(fn func() error) error { return thread.As(u.UID, u.GID, u.Groups, fn) }

// Held are the placeholders that other sandboxes have.
type Held map[ID]Placeholder

// Add adds what a sandbox has on record.
func (h Held) Add(ms []Made) {
	for _, m := range ms {
		for _, p := range m.Placeholders {
			if p.Inode != 0 {
				h[p.id()] = p
			}
		}
	}
}

// Plan are the placeholders that the names of a list need in a tree: new ones, and
// those of other sandboxes that are there already, which it will share.
func (t Tree) Plan(l List, held Held) (ps []Placeholder, err error) {
	root, err := t.open()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	for _, n := range l {
		if t.skips(n) {
			continue
		}
		p, err := t.missing(root, n, held)
		if err != nil {
			return nil, err
		}
		if p.Name != "" && !slices.ContainsFunc(ps, func(o Placeholder) bool { return o.Name == p.Name }) {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// missing is the placeholder that a name needs; none if it has no name.
func (t Tree) missing(dir int, n Name, held Held) (Placeholder, error) {
	for i := range n.parts {
		fd, st, err := lookUp(dir, n.parts[i], unix.RESOLVE_NO_XDEV)
		p := n.placeholder(i)
		if errors.Is(err, unix.ENOENT) {
			return p, nil
		}
		if err != nil {
			return Placeholder{}, t.refuse(p.Name, err)
		}
		defer unix.Close(fd)
		if o, ok := held[ID{st.Dev, st.Ino}]; ok {
			o.Name = p.Name
			return o, nil
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		dir = fd
	}
	return Placeholder{}, nil
}

// Make makes what of a plan has no inode yet, as the agent. What somebody else has
// made meanwhile is no placeholder. After an error the plan is returned as far as
// it was carried out.
func (t Tree) Make(agent User, plan []Placeholder) ([]Placeholder, error) {
	root, err := t.open()
	if err != nil {
		return plan, err
	}
	defer unix.Close(root)
	plan = slices.Clone(plan)
	err = agent.do(func() error {
		for i := range plan {
			p := &plan[i]
			if p.Inode != 0 {
				continue
			}
			switch err := p.make(root); {
			case errors.Is(err, unix.EEXIST):
				p.Name = ""
			case err != nil:
				return t.refuse(p.Name, err)
			}
		}
		return nil
	})
	return slices.DeleteFunc(plan, func(p Placeholder) bool { return p.Name == "" }), err
}

func (p *Placeholder) make(root int) error {
	dir, name, err := p.parent(root)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	switch p.Kind {
	case Directory:
		err = unix.Mkdirat(dir, name, 0o755)
	case Socket:
		err = unix.Mknodat(dir, name, unix.S_IFSOCK|0o600, 0)
	case File:
		err = write(dir, name, p.Text)
	default:
		err = fmt.Errorf("a placeholder of kind %q", p.Kind)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	p.Dev, p.Inode = st.Dev, st.Ino
	return nil
}

// parent is the directory that a placeholder is in, on the root's own mount.
func (p *Placeholder) parent(root int) (dir int, name string, err error) {
	d, name := path.Split(p.Name)
	dir, err = unix.Openat2(root, "./"+d, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	return dir, name, err
}

func write(dir int, name, text string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Open is the directory by its staged mount; nil if that is not there any more. On
// what it returns placeholders can be removed once nothing is staged.
func (m Made) Open() *os.File {
	f, err := os.OpenFile(m.Staged, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Dev != m.Dev || st.Ino != m.Inode {
		_ = f.Close()
		return nil
	}
	return f
}

// Remove removes the placeholders that are still what was made and that no other
// sandbox has. dir is of Open; without one the directory is looked for by its path
// in the mount namespace host (nil is the thread's), as the caller. left are those
// that could not be removed.
func (m Made) Remove(dir, host *os.File, agent, caller User, others Held) (left []Placeholder, err error) {
	user := agent
	if dir == nil {
		if dir = m.find(host, caller); dir == nil {
			return nil, nil // nor anything in it
		}
		defer dir.Close()
		user = caller
	}
	var errs []error
	err = user.do(func() error {
		for _, p := range slices.Backward(m.Placeholders) { // what is in another first
			if err := p.remove(int(dir.Fd()), user, others); err != nil {
				left, errs = append(left, p), append(errs, fmt.Errorf("placeholder %s in %s: %w", p.Name, m.Path, err))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil && len(errs) == 0 {
		return m.Placeholders, err
	}
	slices.Reverse(left)
	return left, err
}

func (p *Placeholder) remove(root int, user User, others Held) error {
	dir, name, err := p.parent(root)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return gone(err)
	}
	_, shared := others[p.id()]
	if _, is := others[ID{st.Dev, st.Ino}]; is || shared || !p.is(dir, name, st, user) {
		return nil
	}
	flags := 0
	if p.Kind == Directory {
		flags = unix.AT_REMOVEDIR
	}
	return gone(unix.Unlinkat(dir, name, flags))
}

// is says whether that is the placeholder, as it was made.
func (p *Placeholder) is(dir int, name string, st unix.Stat_t, user User) bool {
	kind := map[Kind]uint32{Directory: unix.S_IFDIR, Socket: unix.S_IFSOCK, File: unix.S_IFREG}[p.Kind]
	if st.Mode&unix.S_IFMT != kind || p.Inode != 0 && p.Inode != st.Ino || p.Inode == 0 && st.Uid != user.UID {
		return false
	}
	if p.Kind != File {
		return true // a directory is removed only if it is empty
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	buf := make([]byte, maxText+1)
	n, err := unix.Read(fd, buf)
	return err == nil && unix.Fstat(fd, &now) == nil && now.Ino == st.Ino && string(buf[:n]) == p.Text
}

// gone is nil for errors that say that the placeholder is not there, is in use by
// its owner, or is none of the user's to remove any more.
func gone(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENOTEMPTY, unix.EEXIST, unix.EACCES, unix.EPERM, unix.EROFS, unix.EOVERFLOW} { // the last: it is of an id that the mount does not map
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// findTimeout bounds the look-up, which may lead to a file system that is
// somebody's process.
const findTimeout = 10 * time.Second

// find is the directory by its path on the host, as the caller opens it; nil if it
// is not there, or is another.
func (m Made) find(host *os.File, caller User) *os.File {
	found := make(chan *os.File, 1)
	go func() {
		f, err := m.lookUp(host, caller)
		if err != nil {
			f = nil
		}
		found <- f
	}()
	select {
	case f := <-found:
		return f
	case <-time.After(findTimeout):
		go func() {
			if f := <-found; f != nil {
				_ = f.Close()
			}
		}()
		return nil
	}
}

func (m Made) lookUp(host *os.File, caller User) (f *os.File, err error) {
	root := -1
	err = thread.Do(func() (err error) {
		if host != nil {
			// A thread that shares its root with others cannot change it.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(int(host.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
		}
		root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	err = caller.do(func() error {
		fd, err := unix.Openat2(root, strings.TrimPrefix(m.Path, "/"), &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return err
		}
		var st unix.Stat_t
		// Its device may have another number since the host was restarted.
		if err := unix.Fstat(fd, &st); err != nil || st.Ino != m.Inode {
			_ = unix.Close(fd)
			return fmt.Errorf("another directory: %w", errors.Join(err))
		}
		f = os.NewFile(uintptr(fd), m.Path)
		return nil
	})
	return f, err
}
