package imagepull

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/creel-sandbox/creel/pkg/api"
)

// failed says what a pull failed of, and what would help. cause is why its
// context ended, if it has.
func failed(cause, err error, t *target, c Cred) error {
	if cause != nil {
		return cause
	}
	if errors.Is(err, errRefused) {
		return api.Errorf(api.CodeInvalid, "%s: %w", t.full, err)
	}
	if te, ok := errors.AsType[*transport.Error](err); ok {
		if known := answered(te, t, c); known != nil {
			return known
		}
	}
	e := api.Errorf(api.CodeUnavailable, "registry %s: %s", t.registry, short(err))
	switch {
	case errors.Is(err, errPlainHTTP), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.Hint = "if it has no TLS and you trust the network all the same: --tls-verify=false"
	case isCertificate(err):
		e.Hint = "add the authority that signed it to this machine's, or name its file in SSL_CERT_FILE"
	case errors.Is(err, remote.ErrSchema1):
		e.Hint = "the image is of a format from before 2016: push it again"
	}
	return e
}

// answered is a registry's refusal. It tells an image that is private no
// differently from one that does not exist.
func answered(te *transport.Error, t *target, c Cred) error {
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if !c.empty() {
			return api.Errorf(api.CodeDenied, "registry %s refuses the credentials from %s for %s: %s", t.registry, c.Source, t.full, short(te)).
				WithHint("log in again: podman login " + t.registry + ", or docker login " + t.registry)
		}
		return api.Errorf(api.CodeDenied, "registry %s does not give %s to everybody: it does not exist or needs credentials, and none were found", t.registry, t.full).
			WithHint("podman login " + t.registry + ", docker login " + t.registry + ", or --authfile FILE")
	case http.StatusNotFound:
		return api.Errorf(api.CodeNotFound, "registry %s has no %s: %s", t.registry, t.full, short(te))
	case http.StatusTooManyRequests:
		return api.Errorf(api.CodeExhausted, "registry %s: too many requests: %s", t.registry, short(te)).
			WithHint("wait, or log in: who is known may ask more often")
	}
	return nil
}

func isCertificate(err error) bool {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	return unknown || verify
}

// short is an error's text, of which a registry may have written any part.
// Whoever shows it escapes it.
func short(err error) string {
	const most = 400
	text := err.Error()
	// What follows is the answer of a server that issues tokens.
	if before, _, ok := strings.Cut(text, "no token in bearer response"); ok {
		return before + "its token server gave no token"
	}
	words := strings.Fields(text)
	for i, w := range words {
		// An address that a registry redirects to is often signed, and then
		// gives the blob to whoever has it.
		if before, _, query := strings.Cut(w, "?"); query && strings.Contains(before, "://") {
			words[i] = before + "?…"
		}
	}
	text = strings.Join(words, " ")
	if len(text) > most {
		text = fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:most], ""), len(text))
	}
	return text
}
