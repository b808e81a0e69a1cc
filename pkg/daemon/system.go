package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/peer"
	creelruntime "github.com/creel-sandbox/creel/pkg/runtime"
)

// DiskUsage is what is kept of the caller's, and for an operator everybody's.
func (s *service) DiskUsage(ctx context.Context, c peer.Cred) (*api.DiskUsage, error) {
	rows, err := s.DiskUse(c)
	if err != nil {
		return nil, err
	}
	held, err := s.holdings(ctx)
	if err != nil {
		return nil, err
	}
	rows = append(rows, held.rows(func(img creelruntime.Held) bool { return s.owns(c, img) })...)
	volumes, err := s.Volumes(ctx, c)
	if err != nil {
		return nil, err
	}
	rows = append(rows, volumeRows(volumes)...)
	slices.SortFunc(rows, func(a, b api.DiskUse) int {
		return cmp.Or(cmp.Compare(a.What, b.What), cmp.Compare(a.UID, b.UID))
	})
	disk, err := s.Disk()
	if err != nil {
		return nil, err
	}
	return &api.DiskUsage{Rows: rows, Disk: disk}, nil
}

// volumeRows is what the volumes of each user take. None is reclaimable: a
// prune never removes what somebody named to keep it.
func volumeRows(volumes []api.Volume) []api.DiskUse {
	rows := map[uint32]api.DiskUse{}
	for _, v := range volumes {
		r := rows[v.Caller.UID]
		rows[v.Caller.UID] = api.DiskUse{What: "volumes", UID: v.Caller.UID, Count: r.Count + 1, Bytes: r.Bytes + int64(v.Used)}
	}
	return slices.Collect(maps.Values(rows))
}

// Prune removes what is kept and not in use: sandboxes first, so that images
// that only they were made of are free.
func (s *service) Prune(ctx context.Context, c peer.Cred, req api.PruneRequest) (*api.PruneResult, error) {
	before := time.Now().Add(-req.Until.D())
	items, err := s.PruneEnded(ctx, c, before, req.DryRun)
	if err != nil {
		return nil, err
	}
	if req.Images {
		images, err := s.pruneImages(ctx, c, before, req.DryRun)
		if err != nil {
			return nil, err
		}
		items = append(items, images...)
	}
	out := &api.PruneResult{DryRun: req.DryRun, Items: items}
	for _, i := range items {
		if i.Problem == "" {
			out.Bytes += i.Bytes
		}
	}
	return out, nil
}

func (s *service) pruneImages(ctx context.Context, c peer.Cred, before time.Time, dryRun bool) ([]api.Pruned, error) {
	held, err := s.holdings(ctx)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("prune.images"); err != nil {
		return nil, err
	}
	var out []api.Pruned
	for i, h := range held.images {
		if held.used[i] || !s.owns(c, h) || !h.Created.Before(before) {
			continue
		}
		p := api.Pruned{What: "image", ID: h.Digest, Name: h.Ref, UID: h.UID, Time: h.Created, Bytes: held.drop(h)}
		if !dryRun {
			unused, err := s.IfUnused(h.Digest, func() error { return s.rt.RemoveHeld(ctx, h) })
			if !unused {
				held.keep(h) // a launch has begun to use it
				continue
			}
			if err != nil {
				held.keep(h)
				p.Problem = "creeld could not remove it; its log says why"
				if e, ok := errors.AsType[*api.Error](err); ok {
					p.Problem = e.Error()
				}
				s.d.log.WarnContext(ctx, "image not removed", slog.String("image", h.Ref), slog.Any("error", err))
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// owns says whether a caller may remove an image. An operator may remove all.
func (s *service) owns(c peer.Cred, h creelruntime.Held) bool {
	return c.UID == h.UID || s.Callers.Operator(c)
}

// holdings are all images, and how many of them have each part.
type holdings struct {
	images []creelruntime.Held
	used   []bool // something runs from it, or the configuration names it
	shares map[string]int
}

func (s *service) holdings(ctx context.Context) (*holdings, error) {
	images, err := s.rt.Held(ctx)
	if err != nil {
		return nil, err
	}
	named := []string{s.Policy.DefaultImage}
	for _, p := range s.Policy.Profiles {
		named = append(named, p.Image)
	}
	running := s.ImagesInUse()
	h := &holdings{images: images, used: make([]bool, len(images)), shares: map[string]int{}}
	for i, img := range images {
		h.keep(img)
		h.used[i] = running[img.Digest] || slices.ContainsFunc(named, func(ref string) bool { return ref != "" && img.Named(ref) })
	}
	return h, nil
}

func (h *holdings) keep(img creelruntime.Held) {
	for part := range img.Parts {
		h.shares[part]++
	}
}

// drop takes an image away and says how many bytes no other has.
func (h *holdings) drop(img creelruntime.Held) (freed int64) {
	for part, n := range img.Parts {
		if h.shares[part]--; h.shares[part] == 0 {
			freed += n
		}
	}
	return freed
}

// rows are the images of each user that the caller may see the disk of.
func (h *holdings) rows(mine func(creelruntime.Held) bool) []api.DiskUse {
	uids := map[uint32]bool{}
	for _, img := range h.images {
		if mine(img) {
			uids[img.UID] = true
		}
	}
	var out []api.DiskUse
	for uid := range uids {
		r := api.DiskUse{What: "images", UID: uid}
		parts := map[string]int64{}
		var dropped []creelruntime.Held
		for i, img := range h.images {
			if img.UID != uid {
				continue
			}
			r.Count++
			maps.Copy(parts, img.Parts)
			if !h.used[i] {
				r.ReclaimableCount++
				r.ReclaimableBytes += h.drop(img)
				dropped = append(dropped, img)
			}
		}
		for _, img := range dropped {
			h.keep(img)
		}
		for _, n := range parts {
			r.Bytes += n
		}
		out = append(out, r)
	}
	return out
}
