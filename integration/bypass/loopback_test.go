package bypass_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// byIdentity: nobody is given an identity who does not ask for it by a header of its
// own, whoever has a server of the agent's send the request; and one that creeld does
// not give there is none of.
func (a *attempts) byIdentity() {
	say := func(text string) string {
		line, _, _ := strings.Cut(a.w.say(netip.MustParseAddrPort("127.0.0.1:3129"), strings.ReplaceAll(text, "\n", "\r\n")), "\r\n")
		return line
	}
	for name, tt := range map[string]struct{ text, want string }{
		"without its header":    {"GET /v1/svid HTTP/1.1\nHost: 127.0.0.1:3129\nConnection: close\n\n", "HTTP/1.1 400*"},
		"with its header":       {"GET /v1/svid HTTP/1.1\nHost: 127.0.0.1:3129\nWorkload.Spiffe.Io: true\nConnection: close\n\n", "HTTP/1.1 403*"},
		"with its header twice": {"GET /v1/svid.pem HTTP/1.1\nHost: x\nWorkload.Spiffe.Io: true\nWorkload.Spiffe.Io: true\nConnection: close\n\n", "HTTP/1.1 400*"},
		"by POST":               {"POST /v1/svid HTTP/1.1\nHost: x\nContent-Length: 0\nConnection: close\n\n", "HTTP/1.1 405*"},
		"as a proxy":            {"GET http://good.example/ HTTP/1.1\nHost: good.example\nWorkload.Spiffe.Io: true\nConnection: close\n\n", "HTTP/1.1 404*"},
		"by CONNECT":            {"CONNECT good.example:443 HTTP/1.1\nHost: good.example:443\nConnection: close\n\n", "HTTP/1.1 404*"},
		"with a huge header":    {"GET /v1/svid HTTP/1.1\nHost: x\nX: " + strings.Repeat("a", 1<<16) + "\nConnection: close\n\n", "HTTP/1.1 431*"},
	} {
		a.try("the identity, "+name, tt.want, nil, func() string { return say(tt.text) })
	}
}

// byProxy: who speaks to the proxy on loopback has no more than who connects.
func (a *attempts) byProxy() {
	w := a.w
	say := func(text string) string {
		line, _, _ := strings.Cut(w.say(netip.MustParseAddrPort("127.0.0.1:3128"), strings.ReplaceAll(text, "\n", "\r\n")), "\r\n")
		return line
	}
	const forbidden = "HTTP/1.1 403*"
	connect := func(to string) string { return "CONNECT " + to + " HTTP/1.1\nHost: " + to + "\nConnection: close\n\n" }
	get := func(url string) string { return "GET " + url + " HTTP/1.1\nHost: web.example\nConnection: close\n\n" }
	for name, tt := range map[string]struct {
		text, want string
		arrived    []string
	}{
		"CONNECT to another name":             {text: connect("evil.example:443")},
		"CONNECT to another port":             {text: connect("good.example:22")},
		"CONNECT to no port":                  {text: connect("good.example")},
		"CONNECT to a port with a zero":       {text: connect("good.example:0443")},
		"CONNECT to port 0":                   {text: connect("good.example:0")},
		"CONNECT to a port beyond":            {text: connect("good.example:65979")},
		"CONNECT to a name with a dot":        {text: connect("evil.example.:443")},
		"CONNECT to loopback":                 {text: connect("127.0.0.1:5432")},
		"CONNECT to loopback by name":         {text: connect("localhost:5432")},
		"CONNECT to the proxy":                {text: connect("127.0.0.1:3128")},
		"CONNECT to the identity":             {text: connect("127.0.0.1:3129")},
		"the identity":                        {text: get("http://127.0.0.1:3129/v1/svid")},
		"CONNECT to an agent":                 {text: connect("db.agent.creel.internal:5432")},
		"CONNECT to metadata":                 {text: connect(metadata + ":80")},
		"CONNECT to mapped metadata":          {text: connect("[::ffff:" + metadata + "]:80")},
		"CONNECT to metadata as a number":     {text: connect("2852039166:80")},
		"CONNECT to the box":                  {text: connect(boxAddr + ":5432")},
		"CONNECT to an address of the name's": {text: connect(goodAddr + ":443")},
		"CONNECT to a user":                   {text: connect("a@good.example:443"), want: "HTTP/1.1 400*"},
		"a path on another host":              {text: get("http://evil.example/public/a")},
		"a user before the host":              {text: get("http://web.example@evil.example/public/a")},
		"another path":                        {text: get("http://web.example/private")},
		"a path that climbs":                  {text: get("http://web.example/public/../private")},
		"a path that climbs, coded":           {text: get("http://web.example/public/%2e%2e/private")},
		"another port":                        {text: get("http://web.example:22/public/a")},
		"https without CONNECT":               {text: get("https://good.example/")},
		"ftp":                                 {text: get("ftp://web.example/public/a")},
		"no host":                             {text: get("http:///public/a")},
		"a path alone":                        {text: get("/public/a")},
		"a bare address":                      {text: get("http://" + goodAddr + "/public/a")},
		"metadata":                            {text: get("http://" + metadata + "/latest/meta-data")},
		"what it is for":                      {get("http://web.example/public/a"), "HTTP/1.1 200*", []string{"internet " + goodAddr + ":80 GET web.example/public/a"}},
		"a Host of another":                   {"GET http://web.example/public/a HTTP/1.1\nHost: evil.example\nConnection: close\n\n", "HTTP/1.1 200*", []string{"internet " + goodAddr + ":80 GET web.example/public/a"}},
	} {
		want := tt.want
		if want == "" {
			want = forbidden
		}
		a.try("the proxy, "+name, want, tt.arrived, func() string { return say(tt.text) })
	}
	a.try("the proxy, more than a CONNECT at once", "reset", nil, func() string {
		return say(connect("raw.example:22") + "early")
	})
	a.try("the proxy, TLS of another name in a tunnel", "reset", nil, func() string {
		c, err := w.dial("tcp", netip.MustParseAddrPort("127.0.0.1:3128"))
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_, _ = io.WriteString(c, strings.ReplaceAll(connect("good.example:443"), "\n", "\r\n"))
		b := make([]byte, 100)
		n, err := c.Read(b)
		if got := string(b[:n]); err != nil || got != "HTTP/1.1 200 Connection established\r\n\r\n" {
			return fmt.Sprint(got, err)
		}
		return why(tls.Client(c, &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}).HandshakeContext(w.t.Context()))
	})
	a.try("the proxy, without HTTP", "HTTP/1.1 400*", nil, func() string { return say("SSH-2.0-x\n\n") })
}

// webSockets: a connection that becomes one is judged as the request that it was.
func (a *attempts) webSockets() {
	at := netip.AddrPortFrom(a.w.addr("web.example"), 80)
	ask := func(host, path string) func() string {
		return func() string {
			return a.w.say(at, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", path, host))
		}
	}
	a.try("WebSocket, that is allowed", "HTTP/1.1 101 *", []string{"internet " + goodAddr + ":80 GET web.example/public/ws"}, func() string {
		got := ask("web.example", "/public/ws")()
		if !strings.HasSuffix(got, "\r\n\r\nframes") {
			return "without what was said by it: " + got
		}
		return got
	})
	a.try("WebSocket, on another path", "HTTP/1.1 403*", nil, ask("web.example", "/private"))
	a.try("WebSocket, to another host", "HTTP/1.1 403*", nil, ask("evil.example", "/public/ws"))
}
