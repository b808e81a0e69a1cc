package wire

// Rlimit is one resource limit, as in setrlimit(2).
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// Setup is the body of TSetup.
type Setup struct {
	Filter  []byte // struct sock_filter array; none when empty
	Rlimits []Rlimit
	Isolate bool // each process gets a Landlock domain of its own
}

// Append writes the body.
func (s *Setup) Append(w *W) {
	w.Bytes(s.Filter)
	w.U16(uint16(len(s.Rlimits)))
	for _, l := range s.Rlimits {
		w.U32(l.Resource)
		w.U64(l.Soft)
		w.U64(l.Hard)
	}
	w.Bool(s.Isolate)
}

// ReadSetup reads the body. Filter is part of the message.
func ReadSetup(r *R) Setup {
	s := Setup{Filter: r.Bytes(MaxFilter)}
	n := int(r.U16())
	if len(s.Filter)%8 != 0 || n > MaxRlimits {
		r.Fail()
		return Setup{}
	}
	for range n {
		s.Rlimits = append(s.Rlimits, Rlimit{Resource: r.U32(), Soft: r.U64(), Hard: r.U64()})
		if !r.OK() {
			return Setup{}
		}
	}
	s.Isolate = r.Bool()
	return s
}

// Start is the body of TStart.
type Start struct {
	ID         string
	IO         IO
	TTY        bool
	Internal   bool // argv is a file operation of creel-init itself
	Umask      uint32
	Cols, Rows uint16
	Keep       uint8 // descriptors after the process's own that init holds
	Join       uint8 // descriptors after those: files of cgroups to enter
	Window     uint32
	Cwd        []byte
	Argv, Env  [][]byte
}

// ArgsLen is what Argv and Env count against MaxArgs.
func (s *Start) ArgsLen() int {
	n := 0
	for _, a := range s.Argv {
		n += len(a) + 1
	}
	for _, e := range s.Env {
		n += len(e) + 1
	}
	return n
}

// FDs is how many descriptors must come with the message.
func (s *Start) FDs() int {
	n := int(s.Keep) + int(s.Join)
	if s.IO == IOFDs {
		if s.TTY {
			return n + 1
		}
		return n + 3
	}
	return n
}

// Append writes the body.
func (s *Start) Append(w *W) {
	w.Str(s.ID)
	w.U8(uint8(s.IO))
	w.Bool(s.TTY)
	w.Bool(s.Internal)
	w.U32(s.Umask)
	w.U16(s.Cols)
	w.U16(s.Rows)
	w.U8(s.Keep)
	w.U8(s.Join)
	w.U32(s.Window)
	w.Bytes(s.Cwd)
	appendList(w, s.Argv)
	appendList(w, s.Env)
}

// Read reads the body into s, whose lists' memory it uses again. All bytes
// but ID are part of the message. It does not check ArgsLen, which has its
// own error.
func (s *Start) Read(r *R) {
	argv, env := s.Argv[:0], s.Env[:0]
	*s = Start{
		ID: r.ID(), IO: IO(r.U8()), TTY: r.Bool(), Internal: r.Bool(), Umask: r.U32(),
		Cols: r.U16(), Rows: r.U16(), Keep: r.U8(), Join: r.U8(), Window: r.U32(), Cwd: r.CStr(MaxPath),
	}
	s.Argv = readList(r, argv)
	s.Env = readList(r, env)
	if s.IO > IOBytes || s.Umask > 0o777 || s.Keep > MaxKeep || s.Join > MaxJoin || len(s.Argv) == 0 || len(s.Argv[0]) == 0 || len(s.Argv[0]) > MaxPath {
		r.Fail()
	}
	if s.IO == IOBytes && s.Keep+s.Join != 0 {
		r.Fail()
	}
}

func appendList(w *W, list [][]byte) {
	w.U16(uint16(len(list)))
	for _, b := range list {
		w.Bytes(b)
	}
}

func readList(r *R, list [][]byte) [][]byte {
	n := int(r.U16())
	if n > MaxStrings {
		r.Fail()
	}
	for i := 0; i < n && r.OK(); i++ {
		list = append(list, r.CStr(MaxMessage))
	}
	return list
}

// Data is the body of TInput (from the daemon; Stream is Stdin) and TOutput.
type Data struct {
	ID     string
	Stream uint8
	EOF    bool
	Data   []byte
}

// Append writes the body.
func (d *Data) Append(w *W) {
	w.Str(d.ID)
	w.U8(d.Stream)
	w.Bool(d.EOF)
	w.Bytes(d.Data)
}

// ReadData reads the body. Data is part of the message.
func ReadData(r *R) Data {
	d := Data{ID: r.ID(), Stream: r.U8(), EOF: r.Bool(), Data: r.Bytes(MaxData)}
	if d.Stream > Stderr {
		r.Fail()
	}
	return d
}

// Credit is the body of TCredit and TInputCredit: how many more bytes of the
// stream may be sent.
type Credit struct {
	ID     string
	Stream uint8
	N      uint32
}

// Append writes the body.
func (c *Credit) Append(w *W) {
	w.Str(c.ID)
	w.U8(c.Stream)
	w.U32(c.N)
}

// ReadCredit reads the body.
func ReadCredit(r *R) Credit {
	c := Credit{ID: r.ID(), Stream: r.U8(), N: r.U32()}
	if c.Stream > Stderr {
		r.Fail()
	}
	return c
}

// State is where a process is.
type State uint8

// The states of a process in Resume's answer.
const (
	StateWaiting  State = 1 + iota // forked, not released
	StateReleased                  // released, no stamp yet
	StateRunning                   // has its stamp
	StateFinished                  // ended; kept until Ack
)

// Proc is one process in Resume's answer, and the body of TExited.
type Proc struct {
	ID     string
	State  State
	NSPid  int32
	Stamp  int64  // CLOCK_MONOTONIC nanoseconds just before execve; 0 without
	Status uint32 // of wait4(2), when finished
	Stage  Stage  // not StageNone: it could not be started
	Errno  uint32
	Keep   []int32 // descriptor numbers in creel-init
}

// Append writes the body.
func (p *Proc) Append(w *W) {
	w.Str(p.ID)
	w.U8(uint8(p.State))
	w.U32(uint32(p.NSPid))
	w.U64(uint64(p.Stamp))
	w.U32(p.Status)
	w.U8(uint8(p.Stage))
	w.U32(p.Errno)
	w.U8(uint8(len(p.Keep)))
	for _, fd := range p.Keep {
		w.U32(uint32(fd))
	}
}

// ReadProc reads the body.
func ReadProc(r *R) Proc {
	p := Proc{
		ID: r.ID(), State: State(r.U8()), NSPid: int32(r.U32()), Stamp: int64(r.U64()),
		Status: r.U32(), Stage: Stage(r.U8()), Errno: r.U32(),
	}
	n := int(r.U8())
	if n > MaxKeep || p.State < StateWaiting || p.State > StateFinished || p.Stage > StageLast ||
		p.NSPid < 0 || p.NSPid == 1 || p.Stamp < 0 || p.Errno > 4095 {
		r.Fail()
		return Proc{}
	}
	for range n {
		fd := int32(r.U32())
		if fd < 0 {
			r.Fail()
		}
		if !r.OK() {
			return Proc{}
		}
		p.Keep = append(p.Keep, fd)
	}
	return p
}

// Probing is the body of TProbe: what the sandbox promises beyond the fixed list.
type Probing struct {
	ReadonlyRoot bool // writing to / must give EROFS
	NoRoute      bool // no address outside can be reached
	Isolate      bool // no process sees into one that was started on its own
	Root         bool // processes are root of the sandbox's user namespace
}

// Append writes the body.
func (p *Probing) Append(w *W) {
	w.Bool(p.ReadonlyRoot)
	w.Bool(p.NoRoute)
	w.Bool(p.Isolate)
	w.Bool(p.Root)
}

// ReadProbing reads the body.
func ReadProbing(r *R) Probing {
	return Probing{ReadonlyRoot: r.Bool(), NoRoute: r.Bool(), Isolate: r.Bool(), Root: r.Bool()}
}

// Isolation is the name of the probe that Isolate asks for.
const Isolation = "exec_isolation"

// Probe is one call of the self-probe.
type Probe struct {
	Name      string
	Want, Got uint32 // errno; 0 is success
}

// Bounds of a probe's answer.
const (
	MaxProbes    = 256
	MaxProbeName = 64
	MaxKeyring   = 256
)

// Append writes the body.
func (p *Probe) Append(w *W) {
	w.Str(p.Name)
	w.U32(p.Want)
	w.U32(p.Got)
}

// ReadProbe reads the body.
func ReadProbe(r *R) Probe {
	return Probe{Name: r.Str(MaxProbeName), Want: r.U32(), Got: r.U32()}
}
