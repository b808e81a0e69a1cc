package agentinit

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSendAfterCancelled: a message that its sender gave up, at whatever
// moment, does not keep the next ones from being sent.
func TestSendAfterCancelled(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newPacketConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 16)
		for {
			if n, err := unix.Read(pair[1], buf); n <= 0 && err != unix.EINTR {
				return
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-read; unix.Close(pair[1]) })
	for i := range 5000 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_ = c.Send(ctx, []byte("given up"), nil)
		if i%10 == 0 {
			if err := c.Send(t.Context(), []byte("next"), nil); err != nil {
				t.Fatalf("after %d cancelled messages: %v", i+1, err)
			}
		}
	}
}
