package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/stream"

	"github.com/google/go-cmp/cmp"
)

func TestAppendFrame(t *testing.T) {
	tests := []struct {
		name    string
		typ     stream.Type
		payload string
		want    string
		err     error
	}{
		{name: "end of input", typ: stream.Stdin, want: "\x00\x00\x00\x00\x00\x00\x00\x00"},
		{name: "stdout", typ: stream.Stdout, payload: "hi", want: "\x01\x00\x00\x00\x00\x00\x00\x02hi"},
		{name: "resize", typ: stream.Resize, payload: "\x00\x50\x00\x18", want: "\x03\x00\x00\x00\x00\x00\x00\x04\x00\x50\x00\x18"},
		{name: "short resize", typ: stream.Resize, payload: "\x00\x50", err: stream.ErrProtocol},
		{name: "long signal", typ: stream.Signal, payload: "15", err: stream.ErrProtocol},
		{name: "unknown type", typ: 10, err: stream.ErrProtocol},
		{name: "largest", typ: stream.Stderr, payload: strings.Repeat("x", stream.MaxPayload), want: "\x02\x00\x00\x00\x00\x01\x00\x00" + strings.Repeat("x", stream.MaxPayload)},
		{name: "too large", typ: stream.Stderr, payload: strings.Repeat("x", stream.MaxPayload+1), err: stream.ErrProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := stream.AppendFrame(nil, tt.typ, []byte(tt.payload))
			if !errors.Is(err, tt.err) || string(got) != tt.want {
				t.Fatalf("AppendFrame = %.40q, %v, want %.40q, %v", got, err, tt.want, tt.err)
			}
			if tt.err != nil {
				return
			}
			f, err := stream.NewReader(bytes.NewReader(got)).Next()
			if err != nil || f.Type != tt.typ || string(f.Payload) != tt.payload {
				t.Errorf("read back %v %.40q, %v", f.Type, f.Payload, err)
			}
		})
	}
}

func TestNextErrors(t *testing.T) {
	tests := []struct{ name, in, err string }{
		{"nothing", "", "EOF"},
		{"half a header", "\x01\x00\x00", "unexpected EOF"},
		{"half a payload", "\x01\x00\x00\x00\x00\x00\x00\x04ab", "unexpected EOF"},
		{"no payload", "\x01\x00\x00\x00\x00\x00\x00\x04", "unexpected EOF"},
		{"padding", "\x01\x00\x01\x00\x00\x00\x00\x00", "stream protocol error: bytes 1 to 3 of the header 0100010000000000 are not zero"},
		{"length of 4 GiB", "\x01\x00\x00\x00\xff\xff\xff\xff", "stream protocol error: payload of 4294967295 bytes, at most 65536 are allowed"},
		{"type", "\x7f\x00\x00\x00\x00\x00\x00\x00", "stream protocol error: unknown frame type 127"},
		{"HTTP", "GET / HTTP/1.1\r\n", "stream protocol error: bytes 1 to 3 of the header 474554202f204854 are not zero"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := stream.NewReader(strings.NewReader(tt.in)).Next()
			if err == nil || err.Error() != tt.err {
				t.Errorf("Next error = %v, want %s", err, tt.err)
			}
		})
	}
}

// TestWritersDoNotMix has many goroutines write: frames must arrive whole.
func TestWritersDoNotMix(t *testing.T) {
	r, w := io.Pipe()
	fw := stream.NewWriter(w)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte('a' + i)}, 3000+i)
			for range 20 {
				if err := fw.Write(stream.Stdout, p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); w.Close() }()
	fr, n := stream.NewReader(r), 0
	for {
		f, err := fr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
		c := f.Payload[0]
		if len(f.Payload) != 3000+int(c-'a') || len(bytes.Trim(f.Payload, string(c))) != 0 {
			t.Fatalf("a frame of %d bytes is mixed", len(f.Payload))
		}
	}
	if n != 160 {
		t.Errorf("%d frames, want 160", n)
	}
}

func TestStreamSplits(t *testing.T) {
	var b bytes.Buffer
	w := stream.NewWriter(&b)
	in := bytes.Repeat([]byte("0123456789"), 20000)
	if n, err := w.Stream(stream.Stdin).Write(in); n != len(in) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if err := w.Final(stream.Exit, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(stream.Stdin, nil); !errors.Is(err, stream.ErrClosed) {
		t.Errorf("write after the last frame = %v, want ErrClosed", err)
	}
	var got []byte
	var sizes []int
	r := stream.NewReader(&b)
	for f, err := r.Next(); err == nil; f, err = r.Next() {
		sizes = append(sizes, len(f.Payload))
		if f.Type == stream.Stdin {
			got = append(got, f.Payload...)
		}
	}
	if !bytes.Equal(got, in) {
		t.Error("bytes changed on the way")
	}
	if diff := cmp.Diff([]int{65536, 65536, 65536, 3392, 2}, sizes); diff != "" {
		t.Errorf("payload sizes (-want +got):\n%s", diff)
	}
}

type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) { f.n++; return len(p) / 2, syscall.EPIPE }

// TestPartialFrameIsFinal: after half a frame the next header would be read as
// payload, so nothing more may be written.
func TestPartialFrameIsFinal(t *testing.T) {
	f := &failing{}
	w := stream.NewWriter(f)
	for range 3 {
		if err := w.Write(stream.Stdout, []byte("abc")); !stream.Gone(err) {
			t.Errorf("Write = %v, want EPIPE", err)
		}
	}
	if f.n != 1 {
		t.Errorf("%d writes reached the connection after a partial one, want 1 in all", f.n)
	}
}

// socketpair is two ends that carry descriptors.
func socketpair(t *testing.T) (client, server *fdconn.Conn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cu, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	su, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	client, server = fdconn.Client(cu), fdconn.Server(su)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// TestFDs sends descriptors amid frames that the reader buffers together: they
// must be at hand when their frame is read, and not before or after.
func TestFDs(t *testing.T) {
	cu, su := socketpair(t)
	client, server := stream.NewConn(cu, nil), stream.NewConn(su, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := server.Write(stream.Started, []byte(`{"id":"main"}`)); err != nil {
		t.Fatal(err)
	}
	if err := server.SendFDs([]*os.File{w, r}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := server.Final(stream.Exit, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	var order []string
	for range 3 {
		f, err := client.Next()
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, fmt.Sprintf("%v %q", f.Type, f.Payload))
		if f.Type != stream.FDs {
			continue
		}
		files, err := client.RecvFDs(f)
		if err != nil || len(files) != 2 {
			t.Fatalf("RecvFDs = %v, %v, want 2 files", files, err)
		}
		if _, err := files[0].WriteString("ping"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(files[1], got); err != nil || string(got) != "ping" {
			t.Errorf("through the received pipe: %q, %v", got, err)
		}
		files[0].Close()
		files[1].Close()
	}
	if diff := cmp.Diff([]string{`started "{\"id\":\"main\"}"`, `fds "\x02"`, `exit "{}"`}, order); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
}

// TestFDsCountMustAgree: a frame that announces more or fewer than came.
func TestFDsCountMustAgree(t *testing.T) {
	cu, su := socketpair(t)
	client := stream.NewConn(cu, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	frame, err := stream.AppendFrame(nil, stream.FDs, []byte{2})
	if err != nil {
		t.Fatal(err)
	}
	if err := su.Attach(w); err != nil {
		t.Fatal(err)
	}
	if _, err := su.Write(frame); err != nil {
		t.Fatal(err)
	}
	w.Close()
	f, err := client.Next()
	if err != nil {
		t.Fatal(err)
	}
	if files, err := client.RecvFDs(f); !errors.Is(err, stream.ErrProtocol) || files != nil {
		t.Fatalf("RecvFDs = %v, %v, want ErrProtocol", files, err)
	}
	// The one that came was closed: it was the last writer.
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("reading the pipe = %v, want EOF", err)
	}
}

func TestSmallPayloads(t *testing.T) {
	if c, r := stream.DecodeResize(stream.EncodeResize(513, 0xfffe)); c != 513 || r != 0xfffe {
		t.Errorf("resize came back as %d, %d", c, r)
	}
	for p, want := range map[string]syscall.Signal{"\x01": 1, "\x0f": 15, "\x40": 64, "\x00": 0, "\x41": 0, "": 0, "\x01\x02": 0} {
		got, err := stream.DecodeSignal([]byte(p))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("DecodeSignal(%x) = %v, %v, want %v", p, got, err, want)
		}
	}
}

// FuzzReader holds that whatever is accepted encodes to exactly the bytes that
// were read, that no payload is over the bound, and that types with a fixed
// size have it.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x02hi\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x03\x00\x00\x00\x00\x00\x00\x04\x00\x50\x00\x18\x04\x00\x00\x00\x00\x00\x00\x01\x0f"))
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, out := stream.NewReader(bytes.NewReader(in)), []byte(nil)
		for {
			fr, err := r.Next()
			if err != nil {
				break
			}
			if len(fr.Payload) > stream.MaxPayload {
				t.Fatalf("payload of %d bytes", len(fr.Payload))
			}
			if out, err = stream.AppendFrame(out, fr.Type, fr.Payload); err != nil {
				t.Fatalf("a frame that was read cannot be written: %v", err)
			}
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatalf("read %x\nwrote %x", in, out)
		}
	})
}
