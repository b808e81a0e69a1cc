package inside

import (
	"slices"
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// fileOp does one file operation with the agent's rights, in a process of its
// own that was started like a command, and gives the exit code. Its standard
// output is records; the last one, RecEnd, has the errno.
func fileOp(args []string) int {
	out := &records{fd: 1}
	truncated, err := doFileOp(out, args)
	e := errno(err)
	w := wire.BeginRecord(nil, wire.RecEnd)
	w.U32(uint32(e))
	w.Bool(truncated)
	out.put(wire.EndRecord(&w))
	if out.flush() != 0 || e != 0 {
		return 1
	}
	return 0
}

func doFileOp(out *records, args []string) (truncated bool, err error) {
	if len(args) < 2 {
		return false, syscall.EINVAL
	}
	op, path, rest := args[0], args[1], args[2:]
	for len(rest) < 2 {
		rest = append(rest, "")
	}
	switch op {
	case "read":
		return false, readFile(out, path)
	case "write":
		mode, ok := octal(rest[0])
		if !ok {
			return false, syscall.EINVAL
		}
		return false, writeFile(path, mode, rest[1:])
	case "list":
		limit, ok := decimal(rest[0])
		if !ok {
			return false, syscall.EINVAL
		}
		return listDir(out, path, limit)
	case "stat":
		return false, statFile(out, path)
	case "mkdir":
		mode, ok := octal(rest[0])
		if !ok {
			return false, syscall.EINVAL
		}
		return false, makeDir(path, mode, rest[1] == "parents")
	case "remove":
		return false, remove(path, rest[0] == "recursive")
	case "rename":
		if rest[0] == "" {
			return false, syscall.EINVAL
		}
		return false, syscall.Rename(path, rest[0])
	}
	return false, syscall.ENOSYS
}

func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(syscall.Errno); ok && e != 0 { //nolint:errorlint // package errors is not linked in
		return e
	}
	return syscall.EIO
}

// octal reads a permission mode. Set-user-ID, set-group-ID and sticky bits are
// refused: on a shared mount the host would get such a file.
func octal(s string) (uint32, bool) {
	var n uint32
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '7' || i > 4 {
			return 0, false
		}
		n = n<<3 | uint32(s[i]-'0')
	}
	return n, s != "" && n <= 0o777
}

func decimal(s string) (int, bool) {
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' || i > 8 {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, s != ""
}

// records is buffered output.
type records struct {
	fd  int
	buf []byte
	err syscall.Errno
}

func (r *records) put(b []byte) {
	r.buf = append(r.buf, b...)
	if len(r.buf) >= wire.RecMax/2 {
		r.flush()
	}
}

func (r *records) flush() syscall.Errno {
	if r.err == 0 {
		r.err = writeAll(r.fd, r.buf)
	}
	r.buf = r.buf[:0]
	return r.err
}

func writeAll(fd int, b []byte) syscall.Errno {
	for len(b) > 0 {
		n, e := syscall.Write(fd, b)
		if e != nil && e != syscall.EINTR {
			return errno(e)
		}
		b = b[max(n, 0):]
	}
	return 0
}

// openRegular opens a file for reading without waiting for the other end of a FIFO.
func openRegular(path string) (int, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		closeFD(fd)
		return -1, err
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return fd, nil
	case syscall.S_IFDIR:
		err = syscall.EISDIR
	default:
		err = syscall.EINVAL // a device, FIFO or socket has no contents to give
	}
	closeFD(fd)
	return -1, err
}

func readFile(out *records, path string) error {
	fd, err := openRegular(path)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	buf := make([]byte, wire.RecMax)
	for {
		n, err := syscall.Read(fd, buf[wire.RecHead:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		w := wire.BeginRecord(buf, wire.RecData)
		w.B = w.B[:wire.RecHead+n]
		if e := writeAll(out.fd, wire.EndRecord(&w)); e != 0 {
			return e
		}
	}
}

// writeFile takes records from standard input into a file beside path, and
// then renames it, so that path has the old contents or the new ones. Without
// RecEnd the sender is gone, and nothing is changed. With exclusive it is linked
// to path, which fails when there is something (link(2), EEXIST).
func writeFile(path string, mode uint32, how []string) error {
	if slices.Contains(how, "keepmode") {
		if old, err := lstat(-1, path); err == nil && old.Mode&syscall.S_IFMT == syscall.S_IFREG {
			mode = old.Mode & 0o777
		}
	}
	dir := dirOf(path)
	if slices.Contains(how, "parents") && len(dir) > 1 {
		if err := makeDir(dir[:len(dir)-1], 0o755, true); err != nil {
			return err
		}
	}
	tmp := dir + tempName()
	fd, err := syscall.Open(tmp, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = receive(fd)
	if err == nil {
		err = syscall.Fchmod(fd, mode)
	}
	if e := syscall.Close(fd); err == nil {
		err = e
	}
	switch {
	case err == nil && slices.Contains(how, "exclusive"):
		err = syscall.Link(tmp, path)
		_ = syscall.Unlink(tmp)
		return err
	case err == nil:
		err = syscall.Rename(tmp, path)
	}
	if err != nil {
		_ = syscall.Unlink(tmp)
	}
	return err
}

func receive(fd int) error {
	buf := make([]byte, wire.RecMax)
	for {
		if err := readFull(buf[:wire.RecHead]); err != nil {
			return err
		}
		t, n, ok := wire.RecordHead(buf[:wire.RecHead])
		if !ok || t == wire.RecEntry {
			return syscall.EBADMSG
		}
		if err := readFull(buf[:n]); err != nil {
			return err
		}
		if t == wire.RecEnd {
			return nil
		}
		if e := writeAll(fd, buf[:n]); e != 0 {
			return e
		}
	}
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Read(0, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return syscall.ECANCELED
		}
		b = b[n:]
	}
	return nil
}

func dirOf(path string) string {
	for i := len(path); i > 0; i-- {
		if path[i-1] == '/' {
			return path[:i]
		}
	}
	return ""
}

// tempName cannot be guessed, so the open with O_EXCL does not meet another's.
func tempName() string {
	var b [8]byte
	_, _, _ = syscall.RawSyscall(sysGetrandom, uintptr(unsafe.Pointer(&b)), uintptr(len(b)), 0)
	const hex = "0123456789abcdef"
	name := []byte(".creel-")
	for _, c := range b {
		name = append(name, hex[c>>4], hex[c&15])
	}
	return string(name)
}

func statFile(out *records, path string) error {
	e, err := lstat(-1, path)
	if err != nil {
		return err
	}
	putEntry(out, e)
	return nil
}

func putEntry(out *records, e wire.Entry) {
	w := wire.BeginRecord(nil, wire.RecEntry)
	e.Append(&w)
	out.put(wire.EndRecord(&w))
}

// lstat describes name in dir; dir is negative for the current directory.
func lstat(dir int, name string) (wire.Entry, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return wire.Entry{}, syscall.EINVAL
	}
	at := uintptr(dir)
	if dir < 0 {
		at = atFDCWD
	}
	const noFollow = 0x100 // AT_SYMLINK_NOFOLLOW
	var st syscall.Stat_t
	if _, _, e := syscall.Syscall6(sysFstatat, at, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&st)), noFollow, 0, 0); e != 0 {
		return wire.Entry{}, e
	}
	e := wire.Entry{
		Name: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Size: max(st.Size, 0), MTime: st.Mtim.Sec*1e9 + st.Mtim.Nsec,
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		var buf [wire.MaxPath]byte
		n, _, en := syscall.Syscall6(syscall.SYS_READLINKAT, at, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0, 0)
		if en == 0 {
			e.Target = string(buf[:n])
		}
	}
	return e, nil
}

// listDir sends at most limit entries, as the directory gives them. A
// directory of millions costs no more memory than one of ten.
func listDir(out *records, path string, limit int) (truncated bool, err error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer closeFD(fd)
	count := 0
	err = eachName(fd, func(name string) bool {
		if count == limit {
			truncated = true
			return false
		}
		e, err := lstat(fd, name)
		if err == nil { // else it is gone already
			putEntry(out, e)
			count++
		}
		return out.err == 0
	})
	return truncated, err
}

// eachName calls fn with the names in a directory until it says false.
func eachName(fd int, fn func(string) bool) error {
	const nameAt = 19 // of struct linux_dirent64
	buf := make([]byte, 16<<10)
	for {
		n, err := syscall.ReadDirent(fd, buf)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for b := buf[:n]; len(b) > nameAt; {
			size := int(b[16]) | int(b[17])<<8
			if size <= nameAt || size > len(b) {
				return syscall.EIO
			}
			name := b[nameAt:size]
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
			if s := string(name); s != "." && s != ".." && !fn(s) {
				return nil
			}
			b = b[size:]
		}
	}
}

func makeDir(path string, mode uint32, parents bool) error {
	if parents {
		for i := 1; i < len(path); i++ {
			if path[i] == '/' {
				if err := syscall.Mkdir(path[:i], 0o755); err != nil && !isDir(path[:i]) {
					return err
				}
			}
		}
	}
	err := syscall.Mkdir(path, mode)
	if err == syscall.EEXIST && parents && isDir(path) {
		return nil
	}
	return err
}

func isDir(path string) bool {
	var st syscall.Stat_t
	return syscall.Stat(path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR
}
