package cli

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/client"
)

func forwardCommand(a *app) *cobra.Command {
	var anyone bool
	cmd := &cobra.Command{
		Use:   "forward SANDBOX [PATH:|LOCAL:]PORT",
		Short: "Reach a server in a sandbox, by a socket of yours",
		Long: `Reach a server that listens on the loopback of a sandbox. PATH is a Unix socket
that is made, for you alone (0600); LOCAL is a port of this box's 127.0.0.1, at
which every user of the box could connect, and you alone are let in; 0 chooses
one. Without either it is LOCAL, the same as PORT.

It goes on until it is interrupted, or the sandbox ends.`,
		Example: "  creel forward web 8080\n  creel forward web 9000:80\n  creel forward web ./web.sock:80",
		Args:    args(2, 2),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.forward(cmd.Context(), words[0], words[1], anyone)
		},
	}
	cmd.Flags().BoolVar(&anyone, "any-user", false, "let every user of this box connect to a port")
	return cmd
}

// parseForward takes "[PATH:|LOCAL:]PORT" apart.
func parseForward(s string) (path string, local, port uint16, err error) {
	where, last := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		where, last = s[:i], s[i+1:]
		if where == "" {
			return "", 0, 0, misuse("%q has nothing before the colon", s)
		}
	}
	n, err := strconv.ParseUint(last, 10, 16)
	if err != nil || n == 0 {
		return "", 0, 0, misuse("%q is no port", last)
	}
	if where == "" {
		return "", uint16(n), uint16(n), nil
	}
	if m, err := strconv.ParseUint(where, 10, 16); err == nil {
		return "", uint16(m), uint16(n), nil
	}
	return where, 0, uint16(n), nil
}

func (a *app) forward(ctx context.Context, ref, what string, anyone bool) error {
	path, local, port, err := parseForward(what)
	if err != nil {
		return err
	}
	sb, err := a.client().Inspect(ctx, ref)
	if err != nil {
		return err
	}
	l, err := listenForward(ctx, path, local)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// The end of the sandbox is that of its forwarding.
	wg.Go(func() {
		if _, err := a.client().Wait(ctx, sb.ID); err == nil {
			cancel()
		}
	})
	if _, err := fmt.Fprintf(a.Err, "%s is port %d of %s\n", l.Addr(), port, printable(sb.Name)); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			if err := a.forwardOne(ctx, c, sb.ID, port, anyone); err != nil {
				_, _ = fmt.Fprintf(a.Err, "creel: %v\n", err)
			}
		})
	}
}

func listenForward(ctx context.Context, path string, port uint16) (net.Listener, error) {
	var lc net.ListenConfig
	if path == "" {
		return lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	}
	// Of its own: nothing else of this program makes files meanwhile.
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return lc.Listen(ctx, "unix", path)
}

// forwardOne serves one connection.
func (a *app) forwardOne(ctx context.Context, c net.Conn, ref string, port uint16, anyone bool) error {
	if tc, ok := c.(*net.TCPConn); ok && !anyone {
		uid, err := connectingUID(tc)
		if err != nil {
			return fmt.Errorf("who connects from %s cannot be told: %w", c.RemoteAddr(), err)
		}
		if uid != os.Getuid() {
			return fmt.Errorf("uid %d connected, and is not let in", uid)
		}
	}
	f, err := a.client().Forward(ctx, ref, port)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	splice(c, f)
	return nil
}

// splice passes bytes on, each way until its end.
func splice(c net.Conn, f *client.Forwarded) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(f, c)
		if err != nil || f.CloseWrite() != nil {
			_ = f.Close()
		}
	})
	wg.Go(func() {
		_, err := io.Copy(c, f)
		half, ok := c.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			_ = c.Close()
		}
	})
	wg.Wait()
}

// connectingUID is who made the other end of a connection on this box, as the
// kernel lists its sockets (proc_pid_net(5)).
func connectingUID(c *net.TCPConn) (int, error) {
	theirs, err1 := netip.ParseAddrPort(c.RemoteAddr().String())
	ours, err2 := netip.ParseAddrPort(c.LocalAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return uidOf(f, theirs, ours)
}

// uidOf looks for a socket of IPv4 in such a list.
func uidOf(list io.Reader, local, remote netip.AddrPort) (int, error) {
	form := func(a netip.AddrPort) string {
		ip := a.Addr().Unmap().As4()
		// As the number that the four bytes are to this machine.
		slices.Reverse(ip[:])
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			slices.Reverse(ip[:])
		}
		return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(ip[:])), a.Port())
	}
	sc := bufio.NewScanner(list)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		const uid = 7
		if len(f) > uid && f[1] == form(local) && f[2] == form(remote) {
			return strconv.Atoi(f[uid])
		}
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	return 0, errors.New("the kernel does not list it")
}
