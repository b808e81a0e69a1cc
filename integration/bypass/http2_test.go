package bypass_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// field is a header's, or a pseudo-header's.
type field struct{ name, value string }

// h2 is a connection by HTTP/2 to a name whose TLS is opened up.
type h2 struct {
	net.Conn
	*http2.Framer
	next uint32
}

func (w *world) h2(name string) (*h2, error) {
	c, err := w.dial("tcp", netip.AddrPortFrom(w.addr(name), 443))
	if err != nil {
		return nil, err
	}
	t := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}}) // its authority is of TestIntercept
	if err := t.HandshakeContext(w.t.Context()); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if got := t.ConnectionState().NegotiatedProtocol; got != "h2" {
		return nil, errors.Join(fmt.Errorf("it speaks %q", got), c.Close())
	}
	_ = t.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(t, http2.ClientPreface); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	h := &h2{t, http2.NewFramer(t, t), 1}
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return h, h.WriteSettings()
}

// send sends a request as it is, and says in which stream.
func (h *h2) send(body string, fields []field) (uint32, error) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
			return 0, err
		}
	}
	id := h.next
	h.next += 2
	err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: body == "", EndHeaders: true})
	if err == nil && body != "" {
		err = h.WriteData(id, true, []byte(body))
	}
	return id, err
}

// answer is the status of a stream's, or how it ended.
func (h *h2) answer(id uint32) string {
	for {
		f, err := h.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id && f.PseudoValue("status")[0] != '1' {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset"
			}
		case *http2.GoAwayFrame:
			return "closed"
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.WriteSettingsAck()
			}
		}
	}
}

// ask2 is the answer to one request, on a connection of its own.
func (w *world) ask2(name, body string, fields []field) string {
	h, err := w.h2(name)
	if err != nil {
		return err.Error()
	}
	defer h.Close()
	id, err := h.send(body, fields)
	if err != nil {
		return err.Error()
	}
	return h.answer(id)
}

// openedUp: by HTTP/2, where TLS is opened up, there is no more than by HTTP/1.1, and
// what reaches the server is what was judged.
func (a *attempts) openedUp() {
	w := a.w
	get := func(authority, path string, more ...field) []field {
		return append([]field{{":method", "GET"}, {":scheme", "https"}, {":authority", authority}, {":path", path}}, more...)
	}
	const good = "opened.example"
	arrives := func(what string) []string { return []string{"internet " + goodAddr + ":443 " + what} }
	public := arrives("GET opened.example/public/a")
	for name, tt := range map[string]struct {
		fields  []field
		body    string
		want    string
		arrived []string
	}{
		"what it is for":                      {fields: get(good, "/public/a"), want: "200", arrived: public},
		"a body":                              {fields: append([]field{{":method", "POST"}}, get(good, "/public/a")[1:]...), body: "text", want: "200", arrived: arrives("POST opened.example/public/a")},
		"authority of another":                {fields: get("evil.example", "/public/a"), want: "403"},
		"authority of one that is passed":     {fields: get("good.example", "/public/a"), want: "403"},
		"authority of one that is opened too": {fields: get("alike.example", "/public/a"), want: "403"},
		"authority with another port":         {fields: get(good+":8443", "/public/a"), want: "403"},
		"authority with a user":               {fields: get("a@"+good, "/public/a"), want: "reset"},
		"authority with a dot":                {fields: get(good+".", "/public/a"), want: "403"},
		"authority of an address":             {fields: get(goodAddr, "/public/a"), want: "403"},
		"no authority":                        {fields: []field{{":method", "GET"}, {":scheme", "https"}, {":path", "/public/a"}}, want: "403"},
		"no authority, Host of another":       {fields: []field{{":method", "GET"}, {":scheme", "https"}, {":path", "/public/a"}, {"host", "evil.example"}}, want: "403"},
		"Host of another beside authority":    {fields: get(good, "/public/a", field{"host", "evil.example"}), want: "200", arrived: public},
		"two authorities":                     {fields: get(good, "/public/a", field{":authority", "evil.example"}), want: "reset"},
		"another path":                        {fields: get(good, "/private"), want: "403"},
		"a path that climbs":                  {fields: get(good, "/public/../private"), want: "403"},
		"a path that climbs, coded":           {fields: get(good, "/public/%2e%2e/private"), want: "403"},
		"a path with a slash that is coded":   {fields: get(good, "/public/..%2fprivate"), want: "403"},
		"a path with CRLF":                    {fields: get(good, "/public/a HTTP/1.1\r\nHost: evil.example\r\n\r\n"), want: "reset"},
		"a path of another host":              {fields: get(good, "https://evil.example/public/a"), want: "403"},
		"two paths":                           {fields: get(good, "/private", field{":path", "/public/a"}), want: "reset"},
		"no path":                             {fields: []field{{":method", "GET"}, {":scheme", "https"}, {":authority", good}}, want: "reset"},
		"another method":                      {fields: append([]field{{":method", "DELETE"}}, get(good, "/public/a")[1:]...), want: "403"},
		"a method in lower case":              {fields: append([]field{{":method", "get"}}, get(good, "/public/a")[1:]...), want: "403"},
		"a method with a space":               {fields: append([]field{{":method", "GET /private"}}, get(good, "/public/a")[1:]...), want: "403"},
		"CONNECT":                             {fields: []field{{":method", "CONNECT"}, {":authority", "evil.example:443"}}, want: "403"},
		"CONNECT with a protocol":             {fields: append(append([]field{{":method", "CONNECT"}}, get(good, "/public/a")[1:]...), field{":protocol", "websocket"}), want: "reset"},
		"http as its scheme":                  {fields: []field{{":method", "GET"}, {":scheme", "http"}, {":authority", good}, {":path", "/private"}}, want: "403"},
		"a header with CRLF":                  {fields: get(good, "/public/a", field{"x", "y\r\nhost: evil.example"}), want: "reset"},
		"a header with NUL":                   {fields: get(good, "/public/a", field{"x", "y\x00z"}), want: "reset"},
		"a header in capitals":                {fields: get(good, "/public/a", field{"X-Y", "z"}), want: "reset"},
		"a header of a colon":                 {fields: get(good, "/public/a", field{":x", "y"}), want: "reset"},
		"Transfer-Encoding":                   {fields: get(good, "/private", field{"transfer-encoding", "chunked"}), body: "0\r\n\r\nGET /private HTTP/1.1\r\n\r\n", want: "400"},
		"Connection":                          {fields: get(good, "/private", field{"connection", "x-secret"}), want: "400"},
		"a huge header":                       {fields: get(good, "/public/a", field{"x", strings.Repeat("a", 15000)}, field{"y", strings.Repeat("b", 1000)}), want: "200", arrived: public},
	} {
		a.try("HTTP/2, "+name, tt.want, tt.arrived, func() string { return w.ask2(good, tt.body, tt.fields) })
	}
	a.try("HTTP/2, a server that is not verified", "502", nil, func() string {
		return w.ask2("unverified.example", "", get("unverified.example", "/"))
	})
	a.try("HTTP/2, TLS of another name", "refused", nil, func() string {
		c, err := w.dial("tcp", netip.AddrPortFrom(w.addr(good), 443))
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		if tls.Client(c, &tls.Config{ServerName: "alike.example", InsecureSkipVerify: true, NextProtos: []string{"h2"}}).HandshakeContext(w.t.Context()) == nil {
			return "let through"
		}
		return "refused"
	})
	// Opened and taken back at once, again and again (CVE-2023-44487): others are served.
	a.try("HTTP/2, streams that are taken back", "200", public, func() string {
		h, err := w.h2(good)
		if err != nil {
			return err.Error()
		}
		defer h.Close()
		for range 2000 {
			id, err := h.send("", get(good, "/private"))
			if err == nil {
				err = h.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			if err != nil {
				break // it had enough of it
			}
		}
		return w.ask2(good, "", get(good, "/public/a"))
	})
}
