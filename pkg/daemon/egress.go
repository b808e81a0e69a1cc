package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/creel-sandbox/creel/pkg/egress/confine"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/steer"
)

func (d *daemon) egressDir() string { return filepath.Join(d.cfg.RunDir, "egress") }
func (d *daemon) trustDir() string  { return filepath.Join(d.cfg.RunDir, "trust") }

// startEgress takes over the processes that serve networks. Where the kernel
// cannot confine one there are none, and no sandbox has a network.
func (d *daemon) startEgress(ctx context.Context) error {
	if _, err := confine.ABI(); err != nil {
		d.noEgress = fmt.Errorf("creel-egress is confined by Landlock, and this kernel says %w", err)
		d.log.WarnContext(ctx, "this host is weaker: sandboxes have no network", slog.Any("error", d.noEgress))
		return nil
	}
	if err := steer.Mount(filepath.Join(d.cfg.RunDir, "steer")); err != nil {
		d.noEgress = err
		d.log.WarnContext(ctx, "this host is weaker: sandboxes have no network", slog.Any("error", err))
		return nil
	}
	if _, err := d.hostNetwork(); err != nil {
		return err // a setting that is wrong
	}
	k, err := egressproc.New(egressproc.Options{
		Program: filepath.Join(d.cfg.BinDir, "creel-egress"), Dir: d.egressDir(), TrustDir: d.trustDir(), IDs: d.ids, Host: d.hostNetwork, Log: d.log,
		Record: d.decided, Sign: d.identify, Channel: d.channel,
	})
	if err != nil {
		return err
	}
	d.onClose(func() error { k.Close(); return nil })
	d.egress = k
	return k.Adopt(ctx)
}

// decided is told what processes decided. Those of the daemon before may tell
// something before there is who takes it: it is told again when it is tried again.
func (d *daemon) decided(caller uint32, r link.Record) {
	d.log.Debug("egress", slog.Any("record", r))
	if l := d.reaching.Load(); l != nil {
		l.Decided(caller, r)
	}
}

// identify is asked who a sandbox is. Who asks too early asks again.
func (d *daemon) identify(caller uint32, r link.Question) link.Reply {
	if l := d.reaching.Load(); l != nil {
		return l.Identify(caller, r)
	}
	return link.Reply{Error: "creeld is starting"}
}

// channel is asked for a connection to an agent.
func (d *daemon) channel(ctx context.Context, caller uint32, q link.Question) (*net.TCPConn, error) {
	if l := d.reaching.Load(); l != nil {
		return l.Channel(ctx, caller, q)
	}
	return nil, errors.New("creeld is starting")
}

// hostNetwork is what creel-egress has to know of the host.
func (d *daemon) hostNetwork() (link.Host, error) {
	resolv, err1 := readIfThere("/etc/resolv.conf")
	hosts, err2 := readIfThere("/etc/hosts")
	roots, err3 := readIfThere(rootFiles...)
	var err4 error
	if f := d.cfg.Egress.Roots; f != "" {
		var own string
		own, err4 = readIfThere(f)
		if err4 == nil && !strings.Contains(own, "BEGIN CERTIFICATE") {
			err4 = fmt.Errorf("egress.roots: %s has no certificate", f)
		}
		roots += "\n" + own
	}
	return link.Host{Resolve: outside.ParseConfig(resolv, hosts), Roots: roots}, errors.Join(err1, err2, err3, err4)
}

// rootFiles are where distributions have the certificates that servers are
// verified by; the first that is there counts. The list is crypto/x509's.
var rootFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL
	"/etc/ssl/cert.pem",                                 // Alpine
}

// maxHostFile bounds one of these files, in bytes.
const maxHostFile = 4 << 20

func readIfThere(paths ...string) (string, error) {
	for _, p := range paths {
		st, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if st.Size() > maxHostFile {
			return "", fmt.Errorf("%s has %d bytes", p, st.Size())
		}
		b, err := os.ReadFile(p)
		return string(b), err
	}
	return "", nil
}
