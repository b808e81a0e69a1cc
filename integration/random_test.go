package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// chaos is a lab under random requests and random kills.
type chaos struct {
	t *testing.T
	l *lab.Lab

	mu  sync.Mutex
	rnd *rand.Rand
}

func (c *chaos) n(below int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rnd.IntN(below)
}

// seed is CREEL_SEED, or another one each time.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("CREEL_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CREEL_SEED: %v", err)
		}
	}
	t.Logf("CREEL_SEED=%d", n)
	return n
}

// TestRandomKills kills a random process at a random moment of random
// requests, and holds the daemon after it to what must always be so. What the
// clients see may be errors; what is left may not. 20 kills, or 200 with
// CREEL_SOAK.
func TestRandomKills(t *testing.T) {
	kills := 20
	if os.Getenv("CREEL_SOAK") != "" {
		kills = 200
	}
	s := seed(t)
	c := &chaos{t: t, l: lab.New(t, lab.Options{}), rnd: rand.New(rand.NewPCG(s, 0))}
	for i := range kills {
		victim := []string{lab.Daemon, lab.Daemon, lab.Containerd, lab.Shim, lab.Init}[c.n(5)]
		c.round(i, victim)
		if err := c.invariants(); err != nil {
			t.Fatalf("kill %d, of %s: %v\n%s", i, victim, err, c.l.LogTail(30))
		}
	}
}

// round sends requests from three clients, and kills meanwhile.
func (c *chaos) round(i int, victim string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	var clients sync.WaitGroup
	for n := range 3 {
		clients.Go(func() {
			for range 2 {
				c.request(ctx, fmt.Sprintf("chaos-%d-%d", i, n))
			}
		})
	}
	time.Sleep(time.Duration(c.n(250)) * time.Millisecond)
	c.l.KillProcess(victim, c.any(ctx))
	if victim == lab.Daemon {
		c.l.Start()
	}
	clients.Wait()
}

// any is the id of some sandbox, "none" when there is none.
func (c *chaos) any(ctx context.Context) string {
	all, err := c.l.List(ctx, client.ListOptions{})
	if err != nil || len(all) == 0 {
		return "none"
	}
	return all[c.n(len(all))].ID
}

// request does one thing. Whether it works is not the point.
func (c *chaos) request(ctx context.Context, name string) {
	l := c.l
	switch c.n(9) {
	case 0, 1:
		_, _ = l.Client.Spawn(ctx, api.SpawnRequest{Name: name, Command: sh("while :; do echo tick; usleep 50000; done")})
	case 2:
		_, _ = l.Client.Spawn(ctx, api.SpawnRequest{Name: name, Rootfs: "ephemeral"})
	case 3:
		_, _ = l.Client.Spawn(ctx, api.SpawnRequest{Name: name, Remove: true, Command: sh("usleep 30000; exit 3")})
	case 4:
		_, _ = l.Exec(ctx, c.any(ctx), api.ExecRequest{Command: sh("sleep 0.05 & echo $$; usleep 20000")}, client.Stdio{})
	case 5:
		grace := time.Duration(0)
		_, _ = l.Client.Stop(ctx, c.any(ctx), &grace)
	case 6:
		_ = l.Remove(ctx, c.any(ctx), true)
	case 7:
		id := c.any(ctx)
		if l.Pause(ctx, id) == nil && c.n(2) == 0 {
			_ = l.Resume(ctx, id)
		}
	case 8:
		var out strings.Builder
		_ = l.Logs(ctx, c.any(ctx), client.LogOptions{Tail: -1}, &out, &out)
	}
}

// invariants are what holds after every kill: the API answers, every sandbox
// is in a state that a sandbox can rest in and is what it says, and nothing is
// there that belongs to none. Then most sandboxes go.
func (c *chaos) invariants() error {
	l := c.l
	deadline := time.Now().Add(60 * time.Second)
	var err error
	for {
		if err = c.settled(); err == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	all, err := l.List(c.t.Context(), client.ListOptions{All: true})
	if err != nil {
		return err
	}
	for _, sb := range all {
		if sb.State == api.StateStopped || c.n(3) > 0 {
			if rerr := l.Remove(c.t.Context(), sb.ID, true); rerr != nil && api.CodeOf(rerr) != api.CodeNotFound {
				err = errors.Join(err, fmt.Errorf("remove %s: %w", sb.ID, rerr))
			}
		}
	}
	return err
}

// settled is nil when nothing is under way and everything is in order.
func (c *chaos) settled() error {
	l := c.l
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	all, err := l.List(ctx, client.ListOptions{All: true})
	if err != nil {
		return err
	}
	if l.ContainerdPID() == 0 {
		return errors.New("no containerd")
	}
	var known, inits []string
	uids := map[uint32]string{}
	for _, sb := range all {
		known = append(known, sb.ID)
		switch sb.State {
		case api.StateRunning:
			out, res, xerr := c.exec(ctx, sb.ID)
			if xerr != nil || out != "here\n" || res.ExitCode != 0 {
				return fmt.Errorf("sandbox %s (%s) answers %q, %+v, %w", sb.ID, sb.Name, out, res, xerr)
			}
		case api.StatePaused:
		case api.StateStopped:
			if sb.PID != 0 || sb.Reason == "" {
				return fmt.Errorf("ended sandbox %+v", sb)
			}
			continue
		case api.StateCreating, api.StateStopping, api.StateRemoving, api.StateUnknown:
			return fmt.Errorf("sandbox %s is %s: %s", sb.ID, sb.State, sb.Problem)
		}
		inits = append(inits, strconv.Itoa(sb.PID))
		if other := uids[sb.HostUID]; other != "" {
			return fmt.Errorf("sandboxes %s and %s have the same ids", sb.ID, other)
		}
		uids[sb.HostUID] = sb.ID
		if sb.Problem != "" || !lab.Alive(sb.PID) {
			return fmt.Errorf("sandbox %+v", sb)
		}
	}
	left := slices.DeleteFunc(l.Snapshot(), func(s string) bool {
		return slices.ContainsFunc(known, func(id string) bool { return strings.Contains(s, id) }) ||
			strings.HasPrefix(s, "process ") && ofOne(s, inits)
	})
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

// ofOne says whether a process of a snapshot is a PID 1, or below one.
func ofOne(line string, inits []string) bool {
	pid := strings.Fields(line)[1]
	for range 100 {
		if slices.Contains(inits, pid) {
			return true
		}
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			return true // it has just ended
		}
		f := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
		if pid = f[1]; pid == "0" || pid == "1" {
			return false
		}
	}
	return false
}

func (c *chaos) exec(ctx context.Context, id string) (string, api.ExecResult, error) {
	var out strings.Builder
	res, err := c.l.Exec(ctx, id, api.ExecRequest{Command: sh("echo here")}, client.Stdio{Out: &out})
	return out.String(), res, err
}
