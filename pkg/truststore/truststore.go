// Package truststore writes the certificates that programs in a sandbox verify
// servers by, in the forms that they read, and names them in the variables by
// which the programs are told.
package truststore

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // what the format has; it guards against accidents only
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unicode/utf16"
)

// The files in a directory that Write has written.
const (
	pemFile  = "ca.pem"
	javaFile = "ca.jks"
)

// password opens the Java store: Java's own default. All in it is public.
const password = "changeit"

// most is how many bytes of certificates there may be.
const most = 8 << 20

// Write has dir, which is there, hold a store of the certificates in roots, as
// PEM, and of others. What is no certificate in roots is left out. Each file is
// replaced at once.
func Write(dir, roots string, others ...[]byte) error {
	if len(roots) > most {
		return fmt.Errorf("trust store: %d bytes of roots", len(roots))
	}
	var ders [][]byte
	for rest := []byte(roots); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if _, err := x509.ParseCertificate(b.Bytes); b.Type == "CERTIFICATE" && err == nil {
			ders = append(ders, b.Bytes)
		}
	}
	ders = append(ders, others...)
	var text bytes.Buffer
	for _, der := range ders {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("trust store: %w", err)
	}
	defer root.Close()
	err = errors.Join(replace(root, pemFile, text.Bytes()), replace(root, javaFile, java(ders)))
	if err != nil {
		return fmt.Errorf("trust store: %w", err)
	}
	return nil
}

func replace(dir *os.Root, name string, b []byte) error {
	tmp := name + ".new"
	if err := dir.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o444), f.Close()); err != nil {
		return err
	}
	return dir.Rename(tmp, name)
}

// java is a store in the form "JKS" (sun.security.provider.JavaKeyStore), which
// every Java reads.
func java(ders [][]byte) []byte {
	const magic, version, trusted = 0xFEEDFEED, 2, 2
	var b bytes.Buffer
	number := func(n any) { _ = binary.Write(&b, binary.BigEndian, n) } // a Buffer has room
	text := func(s string) { number(uint16(len(s))); b.WriteString(s) }
	number(uint32(magic))
	number(uint32(version))
	number(uint32(len(ders)))
	for i, der := range ders {
		number(uint32(trusted))
		text(fmt.Sprintf("creel-%d", i))
		number(int64(0)) // since when: nobody asks
		text("X.509")
		number(uint32(len(der)))
		b.Write(der)
	}
	h := sha1.New() //nolint:gosec // as above
	for _, c := range utf16.Encode([]rune(password)) {
		h.Write([]byte{byte(c >> 8), byte(c)})
	}
	h.Write([]byte("Mighty Aphrodite")) // so it is
	h.Write(b.Bytes())
	return h.Sum(b.Bytes())
}

// Env are the variables that tell programs of a store that is seen at dir.
func Env(dir string) map[string]string {
	file := dir + "/" + pemFile
	env := map[string]string{
		// Java says at each start that it has read it; there is no quiet way.
		"JAVA_TOOL_OPTIONS": "-Djavax.net.ssl.trustStore=" + dir + "/" + javaFile + " -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword=" + password,
	}
	for _, name := range []string{
		"SSL_CERT_FILE",      // OpenSSL, Go, Python's ssl, Ruby, rustls-native-certs
		"REQUESTS_CA_BUNDLE", // Python's requests, pip
		"CURL_CA_BUNDLE",
		"GIT_SSL_CAINFO",
		"NODE_EXTRA_CA_CERTS",
		"CARGO_HTTP_CAINFO",
		"AWS_CA_BUNDLE",
		"DENO_CERT",
	} {
		env[name] = file
	}
	return env
}
