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

func topCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "top SANDBOX",
		Short: "Show a sandbox's processes and the exec each came from",
		Long: `Show a sandbox's processes as a tree, and the exec that each came from: main is
the main command, and creel exec ls tells of the others. Names in brackets are
those of processes that show no arguments. Names and arguments are what the
processes say of themselves; the rest is the kernel's word.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.top(cmd.Context(), args[0])
		},
	}
}

func (a *app) top(ctx context.Context, ref string) error {
	top, err := a.client().Top(ctx, ref)
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(top)
	}
	var t table
	t.header("PID", "EXEC", "STATE", "STARTED", "CPU", "MEMORY", "THREADS", "COMMAND")
	for _, n := range tree(top.Processes) {
		p := n.Process
		text := "[" + p.Comm + "]"
		if len(p.Args) > 0 {
			text = words(p.Args, p.Cut)
		}
		t.row(p.PID, p.Exec, p.State, ago(p.Started, top.Read), fmt.Sprintf("%.1fs", p.CPUSeconds), size(p.MemoryBytes), p.Threads,
			strings.Repeat("  ", min(n.depth, maxDepth))+text)
	}
	if top.Truncated {
		a.say("there are more processes")
	}
	return a.writeTable(&t)
}

// maxDepth is how far the tree is indented: what is deeper stands below that.
const maxDepth = 16

// branch is a process and how many ancestors of it are shown.
type branch struct {
	api.Process
	depth int
}

// tree puts every process once, after its parent where that is there. The
// list is a moment's, read one by one: it need not be a tree.
func tree(list []api.Process) []branch {
	children := map[int][]int{} // indices of the list, by the parent's pid
	known := map[int]bool{}
	for _, p := range list {
		known[p.PID] = true
	}
	for i, p := range list {
		parent := p.PPID
		if !known[parent] {
			parent = 0
		}
		children[parent] = append(children[parent], i)
	}
	out := make([]branch, 0, len(list))
	seen := make([]bool, len(list))
	var walk func(i, depth int)
	walk = func(i, depth int) {
		if seen[i] {
			return
		}
		seen[i] = true
		out = append(out, branch{list[i], depth})
		for _, c := range children[list[i].PID] {
			walk(c, depth+1)
		}
	}
	for _, i := range children[0] {
		walk(i, 0)
	}
	for i := range list {
		walk(i, 0) // what is in a ring
	}
	return out
}
