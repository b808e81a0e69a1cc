// Package dnsanswer answers DNS queries out of what a sandbox may reach, without
// asking anybody.
//
// A name that is allowed has one A and one AAAA record, of an address that means
// nothing outside (package synthetic), and no record of any other type: no HTTPS
// or SVCB record either, by which a client would learn of other addresses and of
// keys to hide its ClientHello with (RFC 9460, RFC 9848). Any other name does not
// exist. NXDOMAIN and not REFUSED says so, for a resolver library takes REFUSED
// for a server that is out of order, and tries again for seconds.
package dnsanswer

import (
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// MaxQuery bounds a query that is looked at, in bytes: a name of 255, and what
// EDNS adds.
const MaxQuery = 1024

// ttl is in seconds. The addresses stay for the sandbox's life; a name that is
// allowed no more is refused when it is connected to.
const ttl = 60

// udpSize is what EDNS tells a client it may send (RFC 9715).
const udpSize = 1232

// Resolver says what a name's addresses are. An error has the name not exist,
// but for ErrFailed.
type Resolver func(egress.Name) (v4, v6 netip.Addr, err error)

// ErrFailed is a Resolver's for a name that it cannot answer for now.
var ErrFailed = errors.New("cannot be answered for now")

// Answer is the reply to a query, in one datagram and far below 512 bytes but
// for the longest names; nil if there is none to give, since it is no query.
func Answer(query []byte, resolve Resolver) []byte {
	if len(query) > MaxQuery {
		return nil
	}
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	reply := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	if h.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeNotImplemented
		return build(reply, nil, nil, nil)
	}
	q, edns, err := parse(&p)
	if err != nil {
		reply.RCode = dnsmessage.RCodeFormatError
		return build(reply, nil, nil, nil)
	}
	if edns != nil && edns.version != 0 {
		// BADVERS (RFC 6891, section 6.1.3): its upper bits are in the OPT record.
		edns.badVersion = true
		return build(reply, q, edns, nil)
	}
	var v4, v6 netip.Addr
	name, err := egress.ParseName(strings.TrimSuffix(q.Name.String(), "."))
	if err == nil && q.Class == dnsmessage.ClassINET {
		v4, v6, err = resolve(name)
	}
	switch {
	case q.Class != dnsmessage.ClassINET:
		reply.RCode = dnsmessage.RCodeRefused
	case errors.Is(err, ErrFailed):
		reply.RCode = dnsmessage.RCodeServerFailure
	case err != nil:
		reply.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		return build(reply, q, edns, &dnsmessage.AResource{A: v4.As4()})
	case q.Type == dnsmessage.TypeAAAA:
		return build(reply, q, edns, &dnsmessage.AAAAResource{AAAA: v6.As16()})
	}
	return build(reply, q, edns, nil)
}

// options are a query's EDNS (RFC 6891). What is asked for by them is not given.
type options struct {
	version    uint8
	badVersion bool
}

var errFormat = errors.New("not one question")

// parse takes the one question, and EDNS if it comes with it. What else is there
// is nothing that a query has.
func parse(p *dnsmessage.Parser) (*dnsmessage.Question, *options, error) {
	q, err := p.Question()
	if err != nil {
		return nil, nil, err
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, nil, errFormat
	}
	if _, err := p.AnswerHeader(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, nil, errFormat
	}
	if _, err := p.AuthorityHeader(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, nil, errFormat
	}
	var edns *options
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return &q, edns, nil
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && edns != nil {
			return nil, nil, errFormat
		}
		if h.Type == dnsmessage.TypeOPT {
			edns = &options{version: uint8(h.TTL >> 16)}
		}
		if err := p.SkipAdditional(); err != nil {
			return nil, nil, err
		}
	}
}

func build(h dnsmessage.Header, q *dnsmessage.Question, edns *options, answer dnsmessage.ResourceBody) []byte {
	msg := dnsmessage.Message{Header: h}
	if q != nil {
		msg.Questions = []dnsmessage.Question{*q}
	}
	if answer != nil {
		msg.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: answer}}
	}
	if edns != nil {
		const badVersion = 1 << 24
		opt := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Class: udpSize}
		if edns.badVersion {
			opt.TTL = badVersion
		}
		msg.Additionals = []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := msg.Pack()
	if err != nil {
		return nil // a name that can be parsed and not written
	}
	return b
}
