package agentinit_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

// streaming is a sandbox after Go whose channel is a byte stream.
func streaming(tb testing.TB) *sandbox {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil {
		tb.Fatal(err)
	}
	s := newSandbox(tb, theirs, "--stream")
	s.Host = agentinit.TakeStream(os.NewFile(uintptr(fds[0]), "ours"))
	tb.Cleanup(func() { _ = s.Close() })
	if _, err := s.Hello(deadline(tb)); err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(s.Setup(deadline(tb), agentinit.Setup{}), s.Go(deadline(tb))); err != nil {
		tb.Fatal(err)
	}
	return s
}

// begin starts a script whose bytes creel-init moves.
func (s *sandbox) begin(t *testing.T, id, script string, tty bool) {
	t.Helper()
	p := agentinit.Process{ID: id, Argv: []string{"sh", "-c", script}, Env: shEnv, Bytes: true, TTY: tty, Cols: 70, Rows: 20}
	if _, err := s.Start(deadline(t), p, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Release(deadline(t), id); err != nil {
		t.Fatal(err)
	}
}

func (s *sandbox) all(t *testing.T, id string, stream int) string {
	t.Helper()
	var out bytes.Buffer
	for {
		b, err := s.Output(deadline(t), id, stream)
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
}

func TestBytes(t *testing.T) {
	for name, s := range map[string]*sandbox{"stream": streaming(t), "packets": running(t)} {
		t.Run(name, func(t *testing.T) {
			big := strings.Repeat("0123456789abcde\n", 200_000) // over every window
			s.begin(t, "cat", "cat; echo end >&2; exit 5", false)
			sent := make(chan error, 1)
			go func() { sent <- s.Input(deadline(t), "cat", []byte(big), true) }()
			if out := s.all(t, "cat", agentinit.Stdout); out != big {
				t.Errorf("%d bytes came back of %d", len(out), len(big))
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if out := s.all(t, "cat", agentinit.Stderr); out != "end\n" {
				t.Errorf("stderr %q", out)
			}
			if code := s.wait(t, "cat"); code != 5 {
				t.Errorf("code %d", code)
			}

			t.Log("a terminal, its size, and its end of input")
			s.begin(t, "tty", "stty -echo; stty size; read x; stty size; cat; echo $x", true)
			first, err := s.Output(deadline(t), "tty", agentinit.Stdout)
			if err != nil || !strings.Contains(string(first), "20 70") {
				t.Errorf("output %q, %v", first, err)
			}
			if err := errors.Join(s.Resize(deadline(t), "tty", 90, 30), s.Input(deadline(t), "tty", []byte("word\n"), true)); err != nil {
				t.Fatal(err)
			}
			if out := s.all(t, "tty", agentinit.Stdout); !strings.Contains(out, "30 90\r\nword\r\n") {
				t.Errorf("output %q", out)
			}
			s.wait(t, "tty")

			t.Log("nobody reads a flood, and nobody takes the input")
			s.begin(t, "flood", "exec yes", false)
			s.begin(t, "deaf", "exec sleep 60", false)
			if err := s.Input(deadline(t), "deaf", make([]byte, 256<<10), false); err != nil {
				t.Error(err)
			}
			s.begin(t, "other", "echo fine", false)
			if out := s.all(t, "other", agentinit.Stdout); out != "fine\n" {
				t.Errorf("output %q", out)
			}
			s.wait(t, "other")
			if kb := pss(t, s.cmd.Process.Pid); kb > 6<<10 {
				t.Errorf("PSS %d KiB", kb)
			}
			for _, id := range []string{"flood", "deaf"} {
				if err := s.Signal(deadline(t), id, 9); err != nil {
					t.Fatal(err)
				}
				if code := s.wait(t, id); code != 137 {
					t.Errorf("%s: code %d", id, code)
				}
			}

			t.Log("what a process that does not read was to get is dropped")
			s.begin(t, "closed", "exec <&-; sleep 0.2; echo bye", false)
			if err := s.Input(deadline(t), "closed", make([]byte, 1<<20), true); err != nil {
				t.Error(err)
			}
			if out := s.all(t, "closed", agentinit.Stdout); out != "bye\n" {
				t.Errorf("output %q", out)
			}
			s.wait(t, "closed")
			if n := s.Dropped(); n != 0 {
				t.Errorf("%d messages were not asked for", n)
			}
		})
	}
}

// TestStreamEnds: PID 1 of a runtime that has only the stream ends with it.
func TestStreamEnds(t *testing.T) {
	s := streaming(t)
	if _, err := s.Start(deadline(t), agentinit.Process{ID: "a", Argv: []string{"true"}}, []*os.File{os.Stdin, os.Stdin, os.Stdin}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Start with descriptors = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("creel-init: %v", err)
	}
}
