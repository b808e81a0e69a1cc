// Package workload serves one sandbox its identity: the SPIFFE Workload API for
// X.509-SVIDs (by gRPC), and the same as files by plain HTTP.
//
// The private key is made here and stays between this process and the sandbox; who
// the sandbox is creeld says, which signs. Nothing that is asked for decides
// whose identity is given: it is the one of the sandbox whose socket the
// connection came by.
//
// As SPIFFE wants it (Workload Endpoint, section 5), each request has to bring
// "workload.spiffe.io: true", which a browser or a server that is made to fetch an
// address does not.
package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/creel-sandbox/creel/pkg/egress/handed"
)

// Bounds.
const (
	maxHeader     = 8 << 10
	maxMessage    = 4 << 10 // of gRPC: what is asked has no content
	maxStreams    = 8       // of one connection
	headerTimeout = 10 * time.Second
	signTimeout   = 10 * time.Second
	retryAfter    = 2 * time.Second // when it cannot be signed now
)

// Signed is what creeld answers.
type Signed struct {
	// ID is the SPIFFE ID, and Certificate has it, in DER.
	ID          string
	Certificate []byte
	// Bundle are the authorities of its trust domain, in DER.
	Bundle [][]byte
}

// ErrRefused is an identity that the sandbox has no more.
var ErrRefused = errors.New("the sandbox has no identity")

// Sign has creeld sign for a public key, as a SubjectPublicKeyInfo in DER. The
// error wraps ErrRefused where the answer was no; any other may pass.
type Sign func(ctx context.Context, publicKey []byte) (*Signed, error)

// Server is of one sandbox. Use New.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	sign  Sign
	http  *http.Server
	conns *handed.Listener

	mu      sync.Mutex
	current *identity
}

// identity is an SVID with its key.
type identity struct {
	Signed
	key     []byte // PKCS #8
	renew   time.Time
	expires time.Time
}

// New makes a server and starts it. Close ends it.
func New(sign Sign) *Server {
	s := &Server{sign: sign, conns: handed.New()}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	workload.RegisterSpiffeWorkloadAPIServer(g, s)
	files := http.NewServeMux()
	files.HandleFunc("GET /v1/svid", s.file(document))
	files.HandleFunc("GET /v1/svid.pem", s.file(func(id *identity) (string, string) { return pemType, id.chain() + id.private() }))
	files.HandleFunc("GET /v1/bundle.pem", s.file(func(id *identity) (string, string) { return pemType, id.bundle() }))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				g.ServeHTTP(w, r)
				return
			}
			files.ServeHTTP(w, r)
		}),
		Protocols: &protocols, ErrorLog: log.New(io.Discard, "", 0), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute,
		DisableGeneralOptionsHandler: true, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
	}
	go func() { _ = s.http.Serve(s.conns) }()
	return s
}

// Close ends all connections.
func (s *Server) Close() error { return s.http.Close() }

// ServeWorkload serves a connection until it ends. It closes c.
func (s *Server) ServeWorkload(ctx context.Context, c *net.TCPConn) error {
	in := handed.NewConn(c)
	return s.conns.Serve(ctx, in, in)
}

// identity is one that holds for half of its time yet, or, where creeld does not
// answer, as long as it holds at all.
func (s *Server) identity(ctx context.Context) (*identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.current != nil && now.Before(s.current.renew) {
		return s.current, nil
	}
	id, err := s.renew(ctx)
	switch {
	case err == nil:
		s.current = id
	case errors.Is(err, ErrRefused):
		s.current = nil
		return nil, err
	case s.current == nil || !now.Before(s.current.expires):
		return nil, err
	}
	return s.current, nil
}

func (s *Server) renew(ctx context.Context) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err1 := x509.MarshalPKIXPublicKey(key.Public())
	private, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	signed, err := s.sign(ctx, public)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(signed.Certificate)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) || len(signed.Bundle) == 0 {
		return nil, errors.New("what was signed is another's")
	}
	left := time.Until(cert.NotAfter)
	return &identity{Signed: *signed, key: private, renew: time.Now().Add(left / 2), expires: cert.NotAfter}, nil
}

const (
	header    = "workload.spiffe.io"
	pemType   = "application/x-pem-file"
	noHeader  = "the request has to bring the header \"workload.spiffe.io: true\""
	certBlock = "CERTIFICATE"
)

func blocks(kind string, ders ...[]byte) string {
	var b strings.Builder
	for _, der := range ders {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return b.String()
}

func (id *identity) chain() string   { return blocks(certBlock, id.Certificate) }
func (id *identity) bundle() string  { return blocks(certBlock, id.Bundle...) }
func (id *identity) private() string { return blocks("PRIVATE KEY", id.key) }

// document is all of it as one JSON object.
func document(id *identity) (contentType, body string) {
	b, err := json.Marshal(map[string]any{
		"spiffe_id": id.ID, "expires": id.expires.UTC().Format(time.RFC3339), "svid": id.chain(), "key": id.private(), "bundle": id.bundle(),
	})
	if err != nil {
		panic(err) // strings always encode
	}
	return "application/json", string(b) + "\n"
}

// file serves what of gives of the identity as it is now.
func (s *Server) file(of func(*identity) (contentType, body string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if said := r.Header.Values(header); len(said) != 1 || said[0] != "true" {
			http.Error(w, "creel: "+noHeader, http.StatusBadRequest)
			return
		}
		id, err := s.identity(r.Context())
		if err != nil {
			code := http.StatusServiceUnavailable
			if errors.Is(err, ErrRefused) {
				code = http.StatusForbidden
			}
			http.Error(w, "creel: "+err.Error(), code)
			return
		}
		contentType, body := of(id)
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, body)
	}
}

// FetchX509SVID implements the Workload API: the identity, and each one that takes
// its place, until it has none any more.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, out grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return s.follow(out.Context(), func(id *identity) error {
		return out.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: id.ID, X509Svid: id.Certificate, X509SvidKey: id.key, Bundle: join(id.Bundle),
		}}})
	})
}

// FetchX509Bundles implements the Workload API.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, out grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return s.follow(out.Context(), func(id *identity) error {
		domain, _, _ := strings.Cut(strings.TrimPrefix(id.ID, "spiffe://"), "/")
		return out.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{"spiffe://" + domain: join(id.Bundle)}})
	})
}

func join(ders [][]byte) (all []byte) {
	for _, der := range ders {
		all = append(all, der...)
	}
	return all
}

// follow sends each identity that takes the place of the one before.
func (s *Server) follow(ctx context.Context, send func(*identity) error) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if said := md.Get(header); len(said) != 1 || said[0] != "true" {
		return status.Error(codes.InvalidArgument, noHeader)
	}
	var last *identity
	for {
		id, err := s.identity(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrRefused):
			return status.Error(codes.PermissionDenied, err.Error())
		case err != nil:
			return status.Error(codes.Unavailable, fmt.Sprintf("no SVID can be signed now: %v", err))
		}
		if id != last {
			if err := send(id); err != nil {
				return err
			}
			last = id
		}
		select {
		case <-time.After(max(time.Until(id.renew), retryAfter)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
