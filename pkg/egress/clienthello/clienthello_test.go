package clienthello_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/clienthello"
)

// hello is what a client of crypto/tls sends first.
func hello(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	c, s := net.Pipe()
	defer c.Close()
	go func() {
		_ = tls.Client(c, cfg).HandshakeContext(tb.Context())
		_ = c.Close()
	}()
	var head [5]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		tb.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(s, body); err != nil {
		tb.Fatal(err)
	}
	return append(head[:], body...)
}

// echConfigs is a list of one ECHConfig (RFC 9849, section 4).
func echConfigs(tb testing.TB, publicName string) []byte {
	tb.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	pub := key.PublicKey().Bytes()
	c := append([]byte{7, 0, 0x20, 0, byte(len(pub))}, pub...) // id, KEM X25519, key
	c = append(c, 0, 4, 0, 1, 0, 1)                            // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(publicName)))
	c = append(c, publicName...)
	c = append(c, 0, 0)
	c = append([]byte{0xfe, 0x0d, 0, byte(len(c))}, c...)
	return append([]byte{0, byte(len(c))}, c...)
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   *tls.Config
		want  string
		ech   bool
		alpns []string
	}{
		{"name", &tls.Config{ServerName: "api.example.com"}, "api.example.com", false, nil},
		{"as it was written", &tls.Config{ServerName: "API.Example.com"}, "API.Example.com", false, nil},
		{"no name for an address", &tls.Config{ServerName: "192.0.2.1"}, "", false, nil},
		{"protocols", &tls.Config{ServerName: "a.example", NextProtos: []string{"h2", "http/1.1"}}, "a.example", false, []string{"h2", "http/1.1"}},
		{"TLS 1.2", &tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS12}, "a.example", false, nil},
		{"hidden", &tls.Config{ServerName: "inner.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs(t, "outer.example")}, "outer.example", true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := hello(t, tt.cfg)
			for kind, r := range map[string]io.Reader{
				"whole": bytes.NewReader(raw), "bytes": iotest.OneByteReader(bytes.NewReader(raw)), "EOF with data": iotest.DataErrReader(bytes.NewReader(raw)),
			} {
				h, err := clienthello.Read(r)
				if err != nil || h.Name != tt.want || h.ECH != tt.ech || !slices.Equal(h.Protocols, tt.alpns) || !bytes.Equal(h.Raw, raw) {
					t.Errorf("%s: %+v, %v", kind, h, err)
				}
			}
		})
	}
}

// TestReadKeepsAll: what came with the hello is not lost, and what is not read
// is left to be read.
func TestReadKeepsAll(t *testing.T) {
	raw := hello(t, &tls.Config{ServerName: "a.example"})
	all := append(slices.Clone(raw), strings.Repeat("early", 10_000)...)
	r := bytes.NewReader(all)
	h, err := clienthello.Read(r)
	if err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(r)
	if got := slices.Concat(h.Raw, rest); !bytes.Equal(got, all) {
		t.Errorf("%d bytes of %d", len(got), len(all))
	}
}

// split puts the message of one record into records of n bytes.
func split(raw []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(raw[5:], n) {
		out = append(out, raw[0], raw[1], raw[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestReadRecords(t *testing.T) {
	raw := hello(t, &tls.Config{ServerName: "a.example"})
	for _, n := range []int{1, 4, 5, 100} {
		h, err := clienthello.Read(bytes.NewReader(split(raw, n)))
		if err != nil || h.Name != "a.example" {
			t.Errorf("records of %d: %+v, %v", n, h, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	raw := hello(t, &tls.Config{ServerName: "a.example"})
	// withName is the hello with another list of names in the place of its own,
	// which must be as long.
	withName := func(list string) []byte {
		own := "\x00\x00\x09a.example"
		if len(list) != len(own) || bytes.Count(raw, []byte(own)) != 1 {
			t.Fatalf("%q", list)
		}
		return bytes.Replace(raw, []byte(own), []byte(list), 1)
	}
	long := append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, bytes.Repeat([]byte{0}, 20_000)...)
	for name, tt := range map[string]struct {
		raw  []byte
		want error
	}{
		"nothing":           {nil, io.ErrUnexpectedEOF},
		"half":              {raw[:len(raw)/2], io.ErrUnexpectedEOF},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), clienthello.ErrNotTLS},
		"SSH":               {[]byte("SSH-2.0-OpenSSH_9.2\r\n"), clienthello.ErrNotTLS},
		"SSL 2":             {append([]byte{0x80, 0x2e, 1, 3, 1}, make([]byte, 60)...), clienthello.ErrNotTLS},
		"an alert":          {[]byte{21, 3, 3, 0, 2, 2, 40}, clienthello.ErrNotTLS},
		"application data":  {append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...), clienthello.ErrNotTLS},
		"a server's hello":  {append([]byte{22, 3, 3, 0, 44, 2, 0, 0, 40}, make([]byte, 40)...), clienthello.ErrNotTLS},
		"empty records":     {bytes.Repeat([]byte{22, 3, 1, 0, 0}, 100), clienthello.ErrNotTLS},
		"too long":          {long, clienthello.ErrTooLong},
		"too many records":  {split(append(raw[:5:5], long[5:]...), 1), clienthello.ErrTooLong},
		"two names":         {withName("\x00\x00\x03a.b\x00\x00\x03c.d"), clienthello.ErrNotTLS},
		"a name of nothing": {withName("\x00\x00\x00\x01\x00\x06abcdef"), clienthello.ErrNotTLS},
		"ends in a dot":     {withName("\x00\x00\x09a.exampl."), clienthello.ErrNotTLS},
	} {
		t.Run(name, func(t *testing.T) {
			if h, err := clienthello.Read(bytes.NewReader(tt.raw)); !errors.Is(err, tt.want) {
				t.Errorf("%+v, %v; want %v", h, err, tt.want)
			}
		})
	}
}

// TestReadError: an error of the connection's is not the client's.
func TestReadError(t *testing.T) {
	c, s := net.Pipe()
	defer c.Close()
	_ = s.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := clienthello.Read(s); !errors.Is(err, errTimeout(t, err)) || errors.Is(err, clienthello.ErrNotTLS) {
		t.Error(err)
	}
}

func errTimeout(t *testing.T, err error) error {
	t.Helper()
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
	return err
}

// TestReadIsSilent: the client gets no byte, so that the server is the first
// that it hears.
func TestReadIsSilent(t *testing.T) {
	c, s := net.Pipe()
	go func() {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.Copy(io.Discard, c)
	}()
	w := &counting{Conn: s}
	if _, err := clienthello.Read(w); !errors.Is(err, clienthello.ErrNotTLS) {
		t.Error(err)
	}
	if w.written != 0 {
		t.Errorf("%d bytes sent", w.written)
	}
}

type counting struct {
	net.Conn
	written int
}

func (c *counting) Write(b []byte) (int, error) { c.written += len(b); return c.Conn.Write(b) }

// FuzzRead: whatever comes, what is read is kept to the letter, says the same
// when it is read again, and its name is the one that a reader of its own
// finds.
func FuzzRead(f *testing.F) {
	raw := hello(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}})
	f.Add(raw)
	f.Add(split(raw, 3))
	f.Add(hello(f, &tls.Config{ServerName: "in.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs(f, "out.example")}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := clienthello.Read(bytes.NewReader(in))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(in, h.Raw) || len(h.Raw) > clienthello.MaxBytes {
			t.Fatalf("kept %x of %x", h.Raw, in)
		}
		again, err := clienthello.Read(bytes.NewReader(h.Raw))
		if err != nil || again.Name != h.Name || again.ECH != h.ECH {
			t.Fatalf("%+v, again %+v, %v", h, again, err)
		}
		name, ech, ok := naive(h.Raw)
		if !ok || name != h.Name || ech != h.ECH {
			t.Fatalf("%+v, and a reader of its own finds %q %v %v", h, name, ech, ok)
		}
	})
}

// naive finds the name as simply as a server may.
func naive(raw []byte) (name string, ech, ok bool) {
	var msg []byte
	for len(raw) >= 5 && raw[0] == 22 {
		n := int(binary.BigEndian.Uint16(raw[3:]))
		if len(raw) < 5+n {
			break
		}
		msg, raw = append(msg, raw[5:5+n]...), raw[5+n:]
	}
	skip := func(size int) bool { // a field with its length before it
		if len(msg) < size {
			return false
		}
		n := 0
		for _, b := range msg[:size] {
			n = n<<8 | int(b)
		}
		if len(msg) < size+n {
			return false
		}
		msg = msg[size+n:]
		return true
	}
	if len(msg) < 4+34 || msg[0] != 1 {
		return "", false, false
	}
	n := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
	if len(msg) < 4+n {
		return "", false, false
	}
	msg = msg[4 : 4+n][34:]
	if !skip(1) || !skip(2) || !skip(1) {
		return "", false, false
	}
	if len(msg) == 0 {
		return "", false, true
	}
	msg = msg[2:]
	for len(msg) >= 4 {
		kind, n := binary.BigEndian.Uint16(msg), int(binary.BigEndian.Uint16(msg[2:]))
		body := msg[4 : 4+n]
		switch kind {
		case 0:
			for list := body[2:]; len(list) >= 3; {
				n := int(binary.BigEndian.Uint16(list[1:]))
				if list[0] == 0 {
					name = string(list[3 : 3+n])
				}
				list = list[3+n:]
			}
		case 0xfe0d:
			ech = true
		}
		msg = msg[4+n:]
	}
	return name, ech, true
}
