package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"github.com/creel-sandbox/creel/pkg/api"
)

// dial connects, or says why not and what to do about it.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, c.dialError(err)
	}
	return conn.(*net.UnixConn), nil
}

func (c *Client) dialError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return api.Errorf(api.CodeUnavailable, "socket %s: %w", c.socket, err)
	}
	switch {
	case errors.Is(errno, os.ErrPermission):
		e := api.Errorf(api.CodeDenied, "socket %s: %w", c.socket, errno)
		return e.WithHint(deniedHint(c.socket))
	case errors.Is(errno, os.ErrNotExist), errors.Is(errno, syscall.ECONNREFUSED):
		e := api.Errorf(api.CodeUnavailable, "socket %s: %w", c.socket, errno)
		return e.WithHint("creeld is not running there; start it with: systemctl start creeld; creel doctor says more " +
			"(or name another socket with --socket or CREEL_SOCKET)")
	case errors.Is(errno, syscall.EAGAIN):
		e := api.Errorf(api.CodeUnavailable, "socket %s: the daemon's queue is full", c.socket)
		return e.WithHint("try again in a moment")
	}
	return api.Errorf(api.CodeUnavailable, "socket %s: %w", c.socket, errno)
}

// deniedHint looks up who may use the socket and who this process is.
func deniedHint(socket string) string {
	var st syscall.Stat_t
	if err := syscall.Stat(socket, &st); err != nil {
		// The directory hides it: only its owner can say more.
		return "use sudo, or ask the administrator for access to its directory"
	}
	group := strconv.FormatUint(uint64(st.Gid), 10)
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	var have []int
	if gs, err := os.Getgroups(); err == nil {
		have = append(gs, os.Getegid())
	}
	name, registered := "$USER", []string(nil)
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		name = u.Username
		registered, _ = u.GroupIds() // without them the first hint is given, which is never wrong to follow
	}
	return membershipHint(membership{
		user: name, group: group, gid: int(st.Gid),
		process: have, registered: registered,
	})
}

// membership is what is known of a user and the socket's group.
type membership struct {
	user, group string
	gid         int
	process     []int    // groups of this process
	registered  []string // groups of the user in the database, as ids
}

// membershipHint tells "not a member" from "a member since this login began":
// the second needs no administrator, only a new session.
func membershipHint(m membership) string {
	switch {
	case slices.Contains(m.process, m.gid):
		return fmt.Sprintf("this process is in group %q, yet the socket's mode refuses it; "+
			"its owner can mend that with: chmod 0660 on the socket", m.group)
	case slices.Contains(m.registered, strconv.Itoa(m.gid)):
		return fmt.Sprintf("user %q is a member of group %q, but only since this login began: "+
			"start a new session (log out and in, or run: newgrp %s)", m.user, m.group, m.group)
	case m.gid == 0:
		return "the socket belongs to root alone: use sudo"
	}
	return fmt.Sprintf("user %q is not a member of group %q; join it with: sudo usermod -aG %s %s "+
		"and start a new session, or use sudo", m.user, m.group, m.group, m.user)
}
