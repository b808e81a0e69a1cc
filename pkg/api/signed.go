package api

// Envelope is a signed payload: DSSE v1, see
// https://github.com/secure-systems-lab/dsse/blob/master/envelope.md. The
// payload travels as the very bytes that were signed, so that nothing need be
// encoded the same way twice.
type Envelope struct {
	PayloadType string `json:"payloadType"`
	// Payload is in base64, RFC 4648 section 4.
	Payload    string      `json:"payload"`
	Signatures []Signature `json:"signatures"`
}

// Signature is one signature of an envelope.
type Signature struct {
	KeyID string `json:"keyid"`
	// Sig is in base64.
	Sig string `json:"sig"`
}

// EvidenceType is the payload type of signed evidence.
const EvidenceType = "application/vnd.creel.evidence.v1+json"

// EvidenceStatement is what the signature of evidence is of. What is read is
// believed only from here, never from what stands beside it.
type EvidenceStatement struct {
	Evidence
	// SpecDigest is the SHA-256 of the OCI spec as JSON, "sha256:...". Empty
	// for a sandbox that an older creeld launched.
	SpecDigest  string `json:"spec_digest,omitempty"`
	Image       string `json:"image"`
	ImageDigest string `json:"image_digest"`
	Agent       string `json:"agent"`
	Profile     string `json:"profile"`
	Caller      Caller `json:"caller"`
	Creel       string `json:"creel"`
	Kernel      string `json:"kernel"`
	Containerd  string `json:"containerd"`
	// Runtime is the OCI runtime's name and version.
	Runtime string `json:"runtime"`
}

// TrustBundle is what sandboxes' X.509-SVIDs are verified with.
type TrustBundle struct {
	// TrustDomain is the SPIFFE trust domain, such as "box.example.com".
	TrustDomain string `json:"trust_domain"`
	// PEM are the certificates of its authorities. A copy is good for 90 days at
	// least.
	PEM string `json:"pem"`
}

// PublicKey is the key that the box signs with, for whoever verifies.
type PublicKey struct {
	// ID is the first 8 bytes of the SHA-256 of the 32-byte key, as 16
	// hexadecimal digits.
	ID string `json:"id"`
	// PEM is the Ed25519 key as a SubjectPublicKeyInfo, RFC 8410.
	PEM string `json:"pem"`
}
