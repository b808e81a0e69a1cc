package dnsanswer_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/dnsanswer"
)

var (
	v4 = netip.MustParseAddr("198.18.1.0")
	v6 = netip.MustParseAddr("fd12::100")
)

func resolve(n egress.Name) (netip.Addr, netip.Addr, error) {
	if n == "api.example.com" {
		return v4, v6, nil
	}
	if n == "busy.example.com" {
		return netip.Addr{}, netip.Addr{}, dnsanswer.ErrFailed
	}
	return netip.Addr{}, netip.Addr{}, errors.New("not allowed")
}

const (
	typeHTTPS = dnsmessage.Type(65)
	typeSVCB  = dnsmessage.Type(64)
)

func query(tb testing.TB, name string, kind dnsmessage.Type, change ...func(*dnsmessage.Message)) []byte {
	tb.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	for _, c := range change {
		c(&m)
	}
	b, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func edns(version uint8) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Class: 4096, TTL: uint32(version) << 16},
			Body:   &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("a cookie")}}},
		})
	}
}

func TestAnswer(t *testing.T) {
	class := func(c dnsmessage.Class) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) { m.Questions[0].Class = c }
	}
	for _, tt := range []struct {
		name    string
		kind    dnsmessage.Type
		change  func(*dnsmessage.Message)
		code    dnsmessage.RCode
		address string
	}{
		{"api.example.com.", dnsmessage.TypeA, nil, 0, "198.18.1.0"},
		{"API.eXample.com.", dnsmessage.TypeA, nil, 0, "198.18.1.0"},
		{"api.example.com.", dnsmessage.TypeAAAA, edns(0), 0, "fd12::100"},
		{"api.example.com.", typeHTTPS, nil, 0, ""},
		{"api.example.com.", typeSVCB, nil, 0, ""},
		{"api.example.com.", dnsmessage.TypeTXT, nil, 0, ""},
		{"api.example.com.", dnsmessage.TypeALL, nil, 0, ""},
		{"api.example.com.", dnsmessage.TypeCNAME, nil, 0, ""},
		{"api.example.com.", dnsmessage.TypeAXFR, nil, 0, ""},
		{"www.example.com.", dnsmessage.TypeA, nil, dnsmessage.RCodeNameError, ""},
		{"c2VjcmV0.api.example.com.", dnsmessage.TypeA, nil, dnsmessage.RCodeNameError, ""},
		{"c2VjcmV0.evil.example.", dnsmessage.TypeTXT, nil, dnsmessage.RCodeNameError, ""},
		{".", dnsmessage.TypeNS, nil, dnsmessage.RCodeNameError, ""},
		{"localhost.", dnsmessage.TypeA, nil, dnsmessage.RCodeNameError, ""},
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, nil, dnsmessage.RCodeNameError, ""},
		{"api.example.com\x00.evil.example.", dnsmessage.TypeA, nil, dnsmessage.RCodeNameError, ""},
		{"busy.example.com.", dnsmessage.TypeA, nil, dnsmessage.RCodeServerFailure, ""},
		{"api.example.com.", dnsmessage.TypeA, class(dnsmessage.ClassCHAOS), dnsmessage.RCodeRefused, ""},
		{"api.example.com.", dnsmessage.TypeA, class(dnsmessage.ClassANY), dnsmessage.RCodeRefused, ""},
		{"api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.OpCode = 5 }, dnsmessage.RCodeNotImplemented, ""},
		{"api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = nil }, dnsmessage.RCodeFormatError, ""},
		{"api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }, dnsmessage.RCodeFormatError, ""},
		{"api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: 1}, Body: &dnsmessage.AResource{}}}
		}, dnsmessage.RCodeFormatError, ""},
		{"api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { edns(0)(m); edns(0)(m) }, dnsmessage.RCodeFormatError, ""},
	} {
		q := query(t, tt.name, tt.kind)
		if tt.change != nil {
			q = query(t, tt.name, tt.kind, tt.change)
		}
		b := dnsanswer.Answer(q, resolve)
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil {
			t.Fatalf("%s %s: %v", tt.name, tt.kind, err)
		}
		got := ""
		for _, a := range m.Answers {
			switch r := a.Body.(type) {
			case *dnsmessage.AResource:
				got += netip.AddrFrom4(r.A).String()
			case *dnsmessage.AAAAResource:
				got += netip.AddrFrom16(r.AAAA).String()
			default:
				got += a.GoString()
			}
		}
		if m.ID != 4711 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable || m.Truncated || m.RCode != tt.code || got != tt.address || len(b) > 512 {
			t.Errorf("%q %s: %+v, %q", tt.name, tt.kind, m.Header, got)
		}
		if tt.code != dnsmessage.RCodeFormatError && tt.code != dnsmessage.RCodeNotImplemented && (len(m.Questions) != 1 || m.Questions[0].Name.String() != tt.name) {
			t.Errorf("%q: the question is %+v", tt.name, m.Questions)
		}
	}
}

func TestEDNS(t *testing.T) {
	for version, want := range map[uint8]uint32{0: 0, 1: 1 << 24} {
		var m dnsmessage.Message
		if err := m.Unpack(dnsanswer.Answer(query(t, "api.example.com.", dnsmessage.TypeA, edns(version)), resolve)); err != nil {
			t.Fatal(err)
		}
		if len(m.Additionals) != 1 || m.Additionals[0].Header.TTL != want || m.Additionals[0].Header.Class != 1232 || (len(m.Answers) == 1) != (version == 0) {
			t.Errorf("version %d: %+v", version, m)
		}
		if o, ok := m.Additionals[0].Body.(*dnsmessage.OPTResource); !ok || len(o.Options) > 0 {
			t.Errorf("version %d: options %+v", version, o)
		}
	}
}

// TestNoAnswer: what is no query gets none.
func TestNoAnswer(t *testing.T) {
	good := query(t, "api.example.com.", dnsmessage.TypeA)
	response := query(t, "api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Response = true })
	for name, q := range map[string][]byte{
		"nothing": nil, "half a header": good[:8], "a response": response, "too long": append(slices.Clone(good), make([]byte, 1024)...),
	} {
		if b := dnsanswer.Answer(q, resolve); b != nil {
			t.Errorf("%s: %x", name, b)
		}
	}
	for name, q := range map[string][]byte{
		"half a question": good[:16],
		// A name that points at itself.
		"a loop": append(slices.Clone(good[:12]), 0xc0, 12, 0, 1, 0, 1),
	} {
		if b := dnsanswer.Answer(q, resolve); len(b) != 12 || b[3]&0xf != byte(dnsmessage.RCodeFormatError) {
			t.Errorf("%s: %x", name, b)
		}
	}
}

// TestWithAResolver: Go's own resolver takes the answers for what they are, and
// does not try again where there is none.
func TestWithAResolver(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	asked := make(chan string, 64)
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			asked <- "x"
			_, _ = pc.WriteTo(dnsanswer.Answer(b[:n], resolve), from)
		}
	}()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
	got, err := r.LookupNetIP(t.Context(), "ip", "api.example.com.")
	if err != nil || len(got) != 2 || !slices.Contains(got, v4) || !slices.Contains(got, v6) {
		t.Errorf("%v, %v", got, err)
	}
	for len(asked) > 0 {
		<-asked
	}
	began := time.Now()
	_, err = r.LookupNetIP(t.Context(), "ip4", "evil.example.com.")
	var de *net.DNSError
	if !errors.As(err, &de) || !de.IsNotFound || len(asked) != 1 || time.Since(began) > time.Second {
		t.Errorf("%v after %d queries", err, len(asked))
	}
}

// FuzzAnswer: whatever comes, an answer is a response to it with no record but
// of the name that was asked for.
func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "api.example.com.", dnsmessage.TypeA))
	f.Add(query(f, "api.example.com.", dnsmessage.TypeAAAA, edns(0)))
	f.Add(query(f, strings.Repeat("a.", 120)+"example.", typeHTTPS, edns(1)))
	f.Fuzz(func(t *testing.T, q []byte) {
		b := dnsanswer.Answer(q, resolve)
		if b == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil {
			t.Fatalf("%x: %x: %v", q, b, err)
		}
		if !bytes.Equal(b[:2], q[:2]) || !m.Response || m.Truncated || len(b) > 600 || len(m.Answers) > 1 || len(m.Authorities) > 0 {
			t.Fatalf("%x: %+v", q, m)
		}
		for _, a := range m.Answers {
			if !strings.EqualFold(a.Header.Name.String(), "api.example.com.") {
				t.Fatalf("%x: %+v", q, m)
			}
		}
	})
}
