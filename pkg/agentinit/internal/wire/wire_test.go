package wire_test

import (
	"bytes"
	"testing"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// bodies reads and writes each kind of body. Every body has one form: what is
// read without error must be written as the same bytes.
var bodies = map[string]func(*wire.R, *wire.W){
	"setup":   func(r *wire.R, w *wire.W) { m := wire.ReadSetup(r); m.Append(w) },
	"start":   func(r *wire.R, w *wire.W) { var m wire.Start; m.Read(r); m.Append(w) },
	"data":    func(r *wire.R, w *wire.W) { m := wire.ReadData(r); m.Append(w) },
	"credit":  func(r *wire.R, w *wire.W) { m := wire.ReadCredit(r); m.Append(w) },
	"proc":    func(r *wire.R, w *wire.W) { m := wire.ReadProc(r); m.Append(w) },
	"probing": func(r *wire.R, w *wire.W) { m := wire.ReadProbing(r); m.Append(w) },
	"probe":   func(r *wire.R, w *wire.W) { m := wire.ReadProbe(r); m.Append(w) },
	"entry":   func(r *wire.R, w *wire.W) { m := wire.ReadEntry(r); m.Append(w) },
}

func seeds() [][]byte {
	var out [][]byte
	add := func(f func(*wire.W)) {
		var w wire.W
		f(&w)
		out = append(out, w.B)
	}
	add((&wire.Setup{Filter: make([]byte, 16), Rlimits: []wire.Rlimit{{Resource: 4}}, Isolate: true}).Append)
	add((&wire.Probing{NoRoute: true}).Append)
	add((&wire.Start{
		ID: "main", TTY: true, Umask: 0o22, Cols: 80, Rows: 24, Keep: 2, Join: 3, Cwd: []byte("/home"),
		Argv: [][]byte{[]byte("sh"), []byte("-c"), nil}, Env: [][]byte{[]byte("A=b")},
	}).Append)
	add((&wire.Data{ID: "a", Stream: wire.Stderr, EOF: true, Data: []byte("x")}).Append)
	add((&wire.Credit{ID: "a", Stream: wire.Stdout, N: 1 << 20}).Append)
	add((&wire.Proc{ID: "a", State: wire.StateFinished, NSPid: 7, Stamp: 1, Status: 256, Keep: []int32{9}}).Append)
	add((&wire.Probe{Name: "mount", Want: 1, Got: 1}).Append)
	add((&wire.Entry{Name: "f", Mode: 0o100644, Size: 3, MTime: -1, Target: "t"}).Append)
	return out
}

func TestRoundTrip(t *testing.T) {
	for i, name := range []string{"setup", "probing", "start", "data", "credit", "proc", "probe", "entry"} {
		b := seeds()[i]
		r := wire.Body(b)
		var w wire.W
		if bodies[name](&r, &w); !r.Done() || !bytes.Equal(w.B, b) {
			t.Errorf("%s: %x became %x, done %v", name, b, w.B, r.Done())
		}
		for n := range b {
			r := wire.Body(b[:n])
			if bodies[name](&r, &wire.W{}); r.Done() {
				t.Errorf("%s: the first %d of %d bytes are taken for a message", name, n, len(b))
			}
		}
		r = wire.Body(append(bytes.Clone(b), 0))
		if bodies[name](&r, &wire.W{}); r.Done() {
			t.Errorf("%s: a byte too many is taken", name)
		}
	}
}

func TestBounds(t *testing.T) {
	bad := map[string]func(*wire.W){
		"start":  (&wire.Start{ID: "UPPER", Argv: [][]byte{[]byte("a")}}).Append,
		"data":   (&wire.Data{ID: "a", Data: make([]byte, wire.MaxData+1)}).Append,
		"credit": (&wire.Credit{ID: "a", Stream: 3}).Append,
		"proc":   (&wire.Proc{ID: "a", State: wire.StateRunning, NSPid: 1}).Append,
		"setup":  (&wire.Setup{Filter: make([]byte, 12)}).Append,
		"entry":  (&wire.Entry{Name: "a\x00b"}).Append,
		"probe":  (&wire.Probe{Name: string(make([]byte, wire.MaxProbeName+1))}).Append,
	}
	for name, f := range bad {
		var w wire.W
		f(&w)
		r := wire.Body(w.B)
		if bodies[name](&r, &wire.W{}); r.Done() {
			t.Errorf("%s: taken", name)
		}
	}
	for _, s := range []wire.Start{
		{ID: "a"},
		{ID: "a", Argv: [][]byte{nil}},
		{ID: "a", Argv: [][]byte{[]byte("a\x00")}},
		{ID: "a", Argv: [][]byte{[]byte("a")}, Umask: 0o1000},
		{ID: "a", Argv: [][]byte{[]byte("a")}, Keep: wire.MaxKeep + 1},
		{ID: "a", Argv: [][]byte{[]byte("a")}, IO: 2},
		{ID: "a", Argv: [][]byte{[]byte("a")}, Join: wire.MaxJoin + 1},
		{ID: "a", Argv: [][]byte{[]byte("a")}, IO: wire.IOBytes, Keep: 1},
		{ID: "a", Argv: [][]byte{[]byte("a")}, IO: wire.IOBytes, Join: 1},
	} {
		var w wire.W
		s.Append(&w)
		r := wire.Body(w.B)
		var got wire.Start
		if got.Read(&r); r.Done() {
			t.Errorf("%+v: taken", s)
		}
	}
}

func FuzzBodies(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, both := range bodies {
			r := wire.Body(b)
			var w wire.W
			if both(&r, &w); r.Done() && !bytes.Equal(w.B, b) {
				t.Errorf("%s: %x has another form, %x", name, b, w.B)
			}
		}
	})
}
