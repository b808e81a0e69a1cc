package launcher

import (
	"context"
	"log/slog"
	"os"
	"slices"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/share"
	"github.com/creel-sandbox/creel/pkg/store"
)

// grant is one of the operator's that a launch has a use for.
type grant struct {
	share.Grant
	dir    *os.File // what its path is now
	mounts []int    // the launch's mounts that are it, or in it
}

// grants are those that name the sandbox's agent and hold a directory that it
// mounts with write access. One whose directory cannot be opened grants
// nothing.
func (s *launch) grants(ctx context.Context, ms []store.Mount) (_ []grant, err error) {
	var out []grant
	defer func() {
		if err != nil {
			closeGrants(out)
		}
	}()
	for _, g := range s.l.Shares {
		if !g.Names(agentOf(&s.sb.fixed.Sandbox)) || !slices.ContainsFunc(ms, claims) {
			continue
		}
		dir, err := mount.OpenGranted(g.Path)
		if err != nil {
			s.l.log.WarnContext(ctx, "a directory of [[share]] is not shared", slog.String("path", g.Path), slog.Any("error", err))
			continue
		}
		out = append(out, grant{Grant: g, dir: dir})
		for i, m := range ms {
			if !claims(m) {
				continue
			}
			in, err := mount.Holds(dir, m.Staged)
			if err != nil {
				return nil, err
			}
			if in {
				last := &out[len(out)-1]
				last.mounts = append(last.mounts, i)
			}
		}
	}
	return out, nil
}

func closeGrants(gs []grant) {
	for _, g := range gs {
		_ = g.dir.Close()
	}
}

// ungranted says whether no grant lets another agent's sandbox, which holds h,
// share the launch's i-th mount. Both directories must be the granted one or
// in it: a writer of one above would reach more than was granted.
func ungranted(gs []grant, i int, other share.Agent, h store.Mount) (bool, error) {
	for _, g := range gs {
		if !g.Names(other) || !slices.Contains(g.mounts, i) {
			continue
		}
		in, err := mount.Holds(g.dir, h.Staged)
		if in || err != nil {
			return false, err
		}
	}
	return true, nil
}

func agentOf(sb *api.Sandbox) share.Agent { return share.Agent{UID: sb.Caller.UID, Name: sb.Agent} }
