package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/policy"
)

// Reload is how the configuration is read again.
type Reload struct {
	Asked <-chan os.Signal // SIGHUP
	Load  func() (*config.Config, error)
}

// reloadable are the keys, and tables, that a reload puts in force. The others
// are what the daemon was started with.
var reloadable = []string{
	"operators", "caller", "host.", "limits.max.sandboxes", "limits.max.sandboxes_per_user", "limits.max.kept_per_user",
	"limits.max.memory", "limits.max.cpus", "limits.max.pids", "limits.max.disk",
}

// reloads are the policies that were read.
type reloads struct {
	mu         sync.Mutex
	generation int       // 1 is the start's
	at         time.Time // when the one in force was read
	failed     error     // of the last try, if it failed
	waiting    []string  // keys that have another value in the file
}

// await reads the configuration again whenever it is asked to.
func (d *daemon) await(ctx context.Context, r Reload) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.Asked:
			d.reload(ctx, r.Load)
		}
	}
}

// reload puts a new policy in force, or keeps the old one and says why. What
// runs keeps what it was admitted with.
func (d *daemon) reload(ctx context.Context, load func() (*config.Config, error)) {
	cfg, err := load()
	var waiting []string
	var digests map[string]string
	if err == nil {
		for _, key := range config.Changed(d.cfg, cfg) {
			if !canReload(key) {
				waiting = append(waiting, key)
			}
		}
		cfg.SocketGroup = d.cfg.SocketGroup // the socket has that one
		var p *policy.Policy
		if p, err = policy.Compile(cfg); err == nil {
			digests, err = d.policyDigests(cfg)
		}
		if err == nil {
			d.callers.Replace(p)
		}
	}
	s := &d.reloads
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	if err != nil {
		d.records.Fact("policy.reload_failed", map[string]string{"error": err.Error()})
		d.log.ErrorContext(ctx, "the configuration cannot be read; the policy stays what it was", slog.Int("generation", s.generation), slog.Any("error", err))
		return
	}
	s.generation++
	s.at, s.waiting = time.Now(), waiting
	d.records.Fact("policy.load", digests)
	d.log.InfoContext(ctx, "the configuration was read again", slog.Int("generation", s.generation))
	if len(waiting) > 0 {
		d.log.WarnContext(ctx, "these keys have changed and are in force only after a restart", slog.String("keys", strings.Join(waiting, ", ")))
	}
}

func canReload(key string) bool {
	for _, k := range reloadable {
		if key == k || strings.HasSuffix(k, ".") && strings.HasPrefix(key, k) {
			return true
		}
	}
	return false
}

// number is the generation in force.
func (r *reloads) number() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation
}

// check is what doctor says of it. An error has paths and lines of root's
// files: it is told to operators only.
func (r *reloads) check(operator bool) api.Check {
	r.mu.Lock()
	defer r.mu.Unlock()
	told := fmt.Sprintf("generation %d, read %s", r.generation, r.at.UTC().Format(time.RFC3339))
	err := r.failed
	if err != nil && !operator {
		err = errors.New("its log says why")
	}
	c := api.Check{Name: "policy", Status: doctor.OK, Detail: told}
	switch {
	case err != nil:
		c.Status, c.Detail = doctor.Missing, told+"; the last reload failed, and this one stays in force: "+err.Error()
		c.Cost = "what the configuration says now is not in force"
		c.Fix = "mend the configuration (creeld config check FILE), then systemctl reload creeld"
	case len(r.waiting) > 0:
		c.Status, c.Detail = doctor.Weaker, told+"; changed and not in force: "+strings.Join(r.waiting, ", ")
		c.Fix = "systemctl restart creeld"
	}
	return c
}
