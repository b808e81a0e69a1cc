package boxkey

import (
	"encoding/base64"
	"fmt"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"
)

// maxSignatures bounds what Open looks at.
const maxSignatures = 16

// encode is DSSE's pre-authentication encoding: what is signed.
func encode(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len(payload)+len(payloadType)+32)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// Seal signs a payload. payloadType says what it is, and keeps one kind of
// payload from being taken for another.
func (k *Key) Seal(payloadType string, payload []byte) api.Envelope {
	return api.Envelope{
		PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []api.Signature{{KeyID: k.ID(), Sig: base64.StdEncoding.EncodeToString(k.Sign(encode(payloadType, payload)))}},
	}
}

// Open is the payload of an envelope that the key has signed as payloadType.
// The error wraps ErrSignature.
func (p Public) Open(payloadType string, e api.Envelope) ([]byte, error) {
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("%w: it is of type %q, not %q", ErrSignature, e.PayloadType, payloadType)
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrSignature, err)
	}
	msg := encode(payloadType, payload)
	var other string
	for i, s := range e.Signatures {
		sig, err := base64.StdEncoding.Strict().DecodeString(s.Sig)
		if i < maxSignatures && err == nil && p.Verify(msg, sig) {
			return payload, nil
		}
		if s.KeyID != p.id {
			other = fmt.Sprintf(": it names key %q, and the one given is %s", s.KeyID, p.id)
		}
	}
	return nil, fmt.Errorf("%w%s", ErrSignature, other)
}
