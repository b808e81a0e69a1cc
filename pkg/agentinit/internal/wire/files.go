package wire

// RecordType is what a record of a file operation is. A record has five bytes
// before it: its type and its length.
type RecordType uint8

// The records. Each direction ends with RecEnd; without it the other side
// died, and what came is not whole.
const (
	RecData  RecordType = 1 + iota // bytes of a file
	RecEntry                       // one Entry
	RecEnd                         // errno u32, truncated bool
)

// Bounds of a record.
const (
	RecHead  = 5
	RecMax   = 64 << 10
	MaxName  = 255 // of a directory entry
	MaxEntry = 4 << 10
)

// Entry is a file as lstat(2) tells.
type Entry struct {
	Name   string // last element; the path as given, for stat
	Mode   uint32 // st_mode
	UID    uint32
	GID    uint32
	Size   int64
	MTime  int64 // nanoseconds since 1970
	Target string
}

// Append writes the body.
func (e *Entry) Append(w *W) {
	w.Str(e.Name)
	w.U32(e.Mode)
	w.U32(e.UID)
	w.U32(e.GID)
	w.U64(uint64(e.Size))
	w.U64(uint64(e.MTime))
	w.Str(e.Target)
}

// ReadEntry reads the body. Size is not negative.
func ReadEntry(r *R) Entry {
	e := Entry{
		Name: string(r.CStr(MaxPath)), Mode: r.U32(), UID: r.U32(), GID: r.U32(),
		Size: int64(r.U64()), MTime: int64(r.U64()), Target: string(r.CStr(MaxPath)),
	}
	if e.Name == "" || e.Size < 0 || e.Mode > 0o177777 {
		r.Fail()
	}
	return e
}

// BeginRecord starts a record.
func BeginRecord(buf []byte, t RecordType) W {
	w := W{buf[:0]}
	w.U8(uint8(t))
	w.U32(0)
	return w
}

// EndRecord fills in the length.
func EndRecord(w *W) []byte {
	n := uint32(len(w.B) - RecHead)
	w.B[1], w.B[2], w.B[3], w.B[4] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	return w.B
}

// RecordHead reads the five bytes; false when they cannot be.
func RecordHead(b []byte) (RecordType, int, bool) {
	r := R{b: b}
	t, n := RecordType(r.U8()), r.U32()
	return t, int(n), r.Done() && t >= RecData && t <= RecEnd && n <= RecMax
}
