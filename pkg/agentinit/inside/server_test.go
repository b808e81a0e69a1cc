package inside

import (
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// fakeSystem stands for the kernel: it forks nobody.
type fakeSystem struct {
	t     *testing.T
	setUp int
	forks int
	plan  func(*plan)
	kills []int
}

func (f *fakeSystem) fork(p *plan) (int, syscall.Errno) {
	f.forks++
	if p.argv == nil || *p.argv == 0 || p.paths == nil || p.cwd == nil || p.oomPath == nil {
		f.t.Errorf("plan %+v", *p)
	}
	if f.plan != nil {
		f.plan(p)
	}
	return f.forks + 1, 0
}

func (f *fakeSystem) setup(*wire.Setup) syscall.Errno {
	f.setUp++
	return 0
}

func (f *fakeSystem) probe(wire.Probing) []wire.Probe {
	return []wire.Probe{{Name: "mount", Want: 1, Got: 1}}
}

func (f *fakeSystem) kill(pid int, _ syscall.Signal) syscall.Errno {
	f.kills = append(f.kills, pid)
	return 0
}

func (f *fakeSystem) watch(int, uint32, bool) syscall.Errno { return 0 }
func (f *fakeSystem) unwatch(int)                           {}
func (f *fakeSystem) keyring() string                       { return "keyring;0;0;0;k" }

// fakeChannel keeps what is sent.
type fakeChannel struct {
	outQueue
	sent [][]byte
}

func (c *fakeChannel) recv() ([]byte, []int, bool)        { return nil, nil, true }
func (c *fakeChannel) send(msg []byte)                    { c.sent = append(c.sent, append([]byte(nil), msg...)) }
func (c *fakeChannel) flush()                             {}
func (c *fakeChannel) drop()                              { c.list = nil }
func (c *fakeChannel) setInterest(system, uint32, uint32) {}

func msg(t wire.Type, body func(*wire.W)) []byte {
	w := wire.Begin(nil, t, 7)
	if body != nil {
		body(&w)
	}
	return w.B
}

func str(s string) func(*wire.W) { return func(w *wire.W) { w.Str(s) } }

func nonce(w *wire.W) { w.Bytes(make([]byte, wire.NonceLen)) }

func start(id string) func(*wire.W) {
	return (&wire.Start{ID: id, IO: wire.IOBytes, Window: 1 << 10, Argv: [][]byte{[]byte("sh")}, Env: [][]byte{[]byte("PATH=/a:rel::/b")}}).Append
}

func greeted(t *testing.T) (*server, *fakeSystem, *fakeChannel) {
	t.Helper()
	sys, ch := &fakeSystem{t: t}, &fakeChannel{}
	s := newServer(sys, ch)
	t.Cleanup(func() {
		for _, p := range s.procs {
			s.release(p)
		}
	})
	for _, m := range [][]byte{msg(wire.THello, nonce), msg(wire.TSetup, (&wire.Setup{}).Append), msg(wire.TGo, nil)} {
		s.handle(m, nil)
	}
	if len(ch.sent) != 3 {
		t.Fatalf("%d answers", len(ch.sent))
	}
	return s, sys, ch
}

// last is the type and the error code of the latest answer.
func (c *fakeChannel) last(t *testing.T) (wire.Type, wire.Code) {
	t.Helper()
	if len(c.sent) == 0 {
		t.Fatal("no answer")
	}
	h, r, ok := wire.Open(c.sent[len(c.sent)-1])
	if !ok {
		t.Fatalf("answer %x", c.sent[len(c.sent)-1])
	}
	if h.Type != wire.TError {
		return h.Type, 0
	}
	return h.Type, wire.Code(r.U8())
}

func TestAnswers(t *testing.T) {
	s, sys, ch := greeted(t)
	tests := []struct {
		name string
		msg  []byte
		typ  wire.Type
		code wire.Code
	}{
		{"empty", nil, wire.TError, wire.CodeMalformed},
		{"other version", []byte{9, 1, 0, 0, 0, 0}, wire.TError, wire.CodeMalformed},
		{"unknown type", msg(99, nil), wire.TError, wire.CodeMalformed},
		{"an answer as request", msg(wire.TOK, nil), wire.TError, wire.CodeMalformed},
		{"trailing bytes", append(msg(wire.TRelease, str("a")), 0), wire.TError, wire.CodeMalformed},
		{"bad id", msg(wire.TRelease, str("../x")), wire.TError, wire.CodeMalformed},
		{"setup after go", msg(wire.TSetup, (&wire.Setup{}).Append), wire.TError, wire.CodeState},
		{"probe after go", msg(wire.TProbe, (&wire.Probing{ReadonlyRoot: true}).Append), wire.TError, wire.CodeState},
		{"start", msg(wire.TStart, start("a")), wire.TStarted, 0},
		{"start again", msg(wire.TStart, start("a")), wire.TError, wire.CodeExists},
		{"descriptors missing", msg(wire.TStart, (&wire.Start{ID: "b", Argv: [][]byte{[]byte("x")}}).Append), wire.TError, wire.CodeFDs},
		{"ack too early", msg(wire.TAck, str("a")), wire.TError, wire.CodeState},
		{"signal too early", msg(wire.TSignal, func(w *wire.W) { w.Str("a"); w.U8(9) }), wire.TError, wire.CodeState},
		{"input over the window", msg(wire.TInput, (&wire.Data{ID: "a", Data: make([]byte, 2<<10)}).Append), wire.TError, wire.CodeFull},
		{"credit over the window", msg(wire.TCredit, (&wire.Credit{ID: "a", Stream: 1, N: 1}).Append), wire.TError, wire.CodeFull},
		{"release", msg(wire.TRelease, str("a")), wire.TOK, 0},
		{"release twice", msg(wire.TRelease, str("a")), wire.TError, wire.CodeState},
		{"cancel too late", msg(wire.TCancel, str("a")), wire.TError, wire.CodeState},
		{"nobody", msg(wire.TCancel, str("zz")), wire.TError, wire.CodeUnknown},
		{"resume", msg(wire.TResume, nil), wire.TResumeReply, 0},
		{"hello again", msg(wire.THello, nonce), wire.THelloReply, 0},
	}
	for _, tt := range tests {
		n := len(ch.sent)
		s.handle(tt.msg, nil)
		typ, code := ch.last(t)
		if len(ch.sent) != n+1 || typ != tt.typ || code != tt.code {
			t.Errorf("%s: %d answers, type %#x, code %d; want type %#x, code %d", tt.name, len(ch.sent)-n, typ, code, tt.typ, tt.code)
		}
	}
	if sys.setUp != 1 || sys.forks != 1 {
		t.Errorf("%d setups, %d forks", sys.setUp, sys.forks)
	}
	fresh := newServer(sys, ch)
	fresh.handle(msg(wire.TGo, nil), nil)
	if typ, code := ch.last(t); typ != wire.TError || code != wire.CodeState {
		t.Errorf("go before hello: %#x, %d", typ, code)
	}
}

func TestFull(t *testing.T) {
	s, _, ch := greeted(t)
	for i := range wire.MaxProcs {
		id := "p" + itoa(i)
		s.procs[id] = &procState{id: id, ctl: -1, state: wire.StateFinished, pid: 5}
	}
	s.handle(msg(wire.TStart, start("more")), nil)
	if _, code := ch.last(t); code != wire.CodeFull {
		t.Errorf("code %d", code)
	}
	n := len(ch.sent)
	s.handle(msg(wire.TResume, nil), nil)
	if got := len(ch.sent) - n; got != wire.MaxProcs/resumeBatch {
		t.Errorf("%d answers to resume", got)
	}
	for _, m := range ch.sent[n:] {
		if len(m) > wire.MaxMessage {
			t.Errorf("answer of %d bytes", len(m))
		}
	}
}

// FuzzServer gives it any messages, in any order. Whatever comes: each is
// answered at most once (Resume excepted), and nothing is forked before Go.
func FuzzServer(f *testing.F) {
	f.Add(append([]byte{30}, msg(wire.TStart, start("a"))...), true)
	f.Add(append([]byte{12}, msg(wire.TRelease, str("a"))...), false)
	f.Fuzz(func(t *testing.T, b []byte, gone bool) {
		sys, ch := &fakeSystem{t: t}, &fakeChannel{}
		s := newServer(sys, ch)
		if gone {
			s.hello, s.setup, s.gone = true, true, true
			s.handle(msg(wire.TStart, start("a")), nil)
		}
		for len(b) > 0 {
			n := min(int(b[0]), len(b)-1)
			m := b[1 : 1+n]
			b = b[1+n:]
			before := len(ch.sent)
			s.handle(m, nil)
			for _, a := range ch.sent[before:] {
				if _, _, ok := wire.Open(a); !ok {
					t.Errorf("answer %x to %x", a, m)
				}
			}
			if len(ch.sent)-before > 2 {
				t.Errorf("%d answers to %x", len(ch.sent)-before, m)
			}
			if sys.forks > 0 && !s.gone {
				t.Error("forked before go")
			}
		}
		for _, p := range s.procs {
			s.release(p)
		}
	})
}
