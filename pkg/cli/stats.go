package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func statsCommand(a *app) *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "stats [--no-stream] [SANDBOX...]",
		Short: "Show what sandboxes use, again every second",
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.stats(cmd.Context(), refs, once)
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "once, not again and again")
	return cmd
}

func (a *app) stats(ctx context.Context, refs []string, once bool) error {
	before := map[string]api.Stats{}
	redraw := !once && !a.json && isTerminal(a.Out)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now, err := a.readStats(ctx, refs)
		if err != nil {
			return err
		}
		if err := a.showStats(now, before, redraw); err != nil || once {
			return err
		}
		clear(before)
		for _, s := range now {
			before[s.ID] = s
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readStats reads those named, or all that run. One that ends meanwhile drops
// out of the second kind only.
func (a *app) readStats(ctx context.Context, refs []string) ([]api.Stats, error) {
	named := len(refs) > 0
	if !named {
		list, err := a.client().List(ctx, client.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			refs = append(refs, s.ID)
		}
	}
	all := make([]api.Stats, 0, len(refs))
	for _, ref := range refs {
		s, err := a.client().Stats(ctx, ref)
		switch code := api.CodeOf(err); {
		case err == nil:
			all = append(all, *s)
		case named || code != api.CodeNotFound && code != api.CodeConflict:
			return nil, err
		}
	}
	return all, nil
}

func (a *app) showStats(now []api.Stats, before map[string]api.Stats, redraw bool) error {
	if a.json {
		return a.writeJSONLine(now)
	}
	var t table
	t.header("ID", "NAME", "CPU", "MEMORY / LIMIT", "PEAK", "PIDS", "READ / WRITTEN", "OOM")
	for _, s := range now {
		t.row(s.ID, s.Name, cpu(s, before[s.ID]), size(s.MemoryBytes)+" / "+size(s.MemoryLimit), size(s.MemoryPeak),
			fmt.Sprintf("%d / %d", s.Pids, s.PidsLimit), size(s.IOReadBytes)+" / "+size(s.IOWriteBytes), s.OOMKills)
	}
	if !redraw {
		return a.writeTable(&t)
	}
	// Home, the table with each line cleared behind it, then clear the rest:
	// no flicker, and what scrolled away stays.
	var b strings.Builder
	if err := t.write(&b, colors(a.Out)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Out, "\x1b[H%s\x1b[J", strings.ReplaceAll(b.String(), "\n", "\x1b[K\n"))
	return err
}

// cpu is the share of one processor since the reading before, or the time used
// so far when there was none.
func cpu(s, before api.Stats) string {
	span := s.Read.Sub(before.Read).Seconds()
	if before.ID == "" || span <= 0 {
		return fmt.Sprintf("%.1fs", s.CPUSeconds)
	}
	return fmt.Sprintf("%.0f%%", 100*(s.CPUSeconds-before.CPUSeconds)/span)
}
