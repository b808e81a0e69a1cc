package cli

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func lsCommand(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "ls SANDBOX:DIR",
		Short: "List a directory of a sandbox",
		Args:  args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, dir, ok := splitRef(args[0])
			if !ok {
				ref, dir = args[0], "/"
			}
			if dir == "" {
				dir = "/"
			}
			var list []api.FileInfo
			truncated, err := a.client().ListDir(cmd.Context(), ref, path.Clean("/"+dir), limit, func(fi api.FileInfo) error {
				list = append(list, fi)
				return nil
			})
			if err != nil {
				return err
			}
			return a.writeList(list, truncated)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 10000, "at most this many entries")
	return cmd
}

func diffCommand(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "diff SANDBOX",
		Short: "Show what a sandbox changed: A added, C changed, D deleted",
		Long: `Show what a sandbox that has not ended changed in its root file system,
compared with its image: A added, C changed, D deleted.

Of volumes and directories that it can write, show what is new (A) or was
changed (C) since it started, by the file system's own times. That is whoever
did it, also outside. What was removed is not shown; the directory that it was
in is, as changed. These mounts, and the places of which nothing is shown, are
named on standard error.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.client().Diff(cmd.Context(), args[0], limit)
			if err != nil {
				return err
			}
			return a.writeDiff(d)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many changes (10000)")
	return cmd
}

func (a *app) writeDiff(d *api.Diff) error {
	if a.json {
		return a.writeJSON(d)
	}
	for _, c := range d.Changes {
		if _, err := fmt.Fprintf(a.Out, "%s %s\n", printable(c.Kind), printable(c.Path)); err != nil {
			return err
		}
	}
	if d.Truncated {
		a.say("there are more")
	}
	if len(d.ByTime) > 0 {
		a.say("by time, whoever did it, and without what was removed: %s", strings.Join(d.ByTime, ", "))
	}
	if len(d.NotCompared) > 0 {
		a.say("not compared: %s", strings.Join(d.NotCompared, ", "))
	}
	return nil
}

func (a *app) writeList(list []api.FileInfo, truncated bool) error {
	if a.json {
		return a.writeJSON(map[string]any{"entries": list, "truncated": truncated})
	}
	var t table
	for _, fi := range list {
		name := cell{fi.Name, plain}
		switch fi.Type {
		case "dir":
			name = cell{fi.Name + "/", bold}
		case "symlink":
			name = cell{fi.Name + " -> " + fi.Target, faint}
		}
		t.row(modeString(fi), fmt.Sprintf("%d:%d", fi.UID, fi.GID), size(fi.Size), fi.ModTime.Local().Format("2006-01-02 15:04"), name)
	}
	if err := a.writeTable(&t); err != nil {
		return err
	}
	if truncated {
		a.say("there are more; see --limit")
	}
	return nil
}

func modeString(fi api.FileInfo) string {
	m := fs.FileMode(fi.Mode & 0o777)
	switch fi.Type {
	case "dir":
		m |= fs.ModeDir
	case "symlink":
		m |= fs.ModeSymlink
	case "other":
		m |= fs.ModeIrregular
	}
	return m.String()
}

// splitRef splits SANDBOX:PATH. A reference has no slash, so "./a:b" and
// "/a:b" are paths of this machine.
func splitRef(s string) (ref, file string, ok bool) {
	ref, file, ok = strings.Cut(s, ":")
	if !ok || ref == "" || strings.ContainsAny(ref, "/.") {
		return "", s, false
	}
	return ref, file, true
}
