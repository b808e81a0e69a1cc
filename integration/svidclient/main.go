// Command svidclient is a program in a sandbox that proves who it is, by SPIFFE's
// own library: it asks an HTTPS server for an address by mutual TLS, with the SVID
// that the Workload API gives, and prints the answer.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "svidclient:", err)
		os.Exit(1)
	}
}

func run() error {
	const args = 3
	if len(os.Args) != args {
		return errors.New("usage: svidclient URL ROOTS")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := os.ReadFile(os.Args[2]) //nolint:gosec // who runs it names it
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	c := http.Client{Transport: &http.Transport{TLSClientConfig: tlsconfig.MTLSWebClientConfig(source, roots)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Args[1], nil) //nolint:gosec // the same
	if err != nil {
		return err
	}
	resp, err := c.Do(req) //nolint:gosec // the same
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
