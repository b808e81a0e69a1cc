package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/preset"
	"github.com/creel-sandbox/creel/profiles"
)

// presetDirs are where presets are, each before those that it gives way to last.
func presetDirs() ([]preset.Dir, error) {
	own, err := fs.Sub(profiles.FS, "egress")
	if err != nil {
		return nil, err
	}
	dirs := []preset.Dir{{FS: own, Name: "embedded"}}
	paths := []string{"/etc/creel/egress"}
	if home, err := os.UserConfigDir(); err == nil {
		paths = append(paths, filepath.Join(home, "creel", "egress"))
	}
	for _, p := range paths {
		dirs = append(dirs, preset.Dir{FS: os.DirFS(p), Name: p})
	}
	return dirs, nil
}

// presetOf is a preset by its name.
func presetOf(ctx context.Context, name string) (*preset.Preset, error) {
	dirs, err := presetDirs()
	if err != nil {
		return nil, err
	}
	all, err := preset.Load(dirs...)
	if err != nil {
		return nil, err
	}
	if p := all[name]; p != nil {
		return p, nil
	}
	if slices.Contains(preset.Clients(), name) {
		return preset.Here().Of(ctx, name)
	}
	return nil, fmt.Errorf("no preset %q; \"creel egress preset ls\" lists them", name)
}

// expand puts the rules of presets, @NAME, in their place.
func expand(ctx context.Context, rules []string) (out []string, err error) {
	for _, r := range rules {
		name, is := strings.CutPrefix(r, "@")
		if !is {
			out = append(out, r)
			continue
		}
		p, err := presetOf(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Rules...)
	}
	return out, nil
}

func presetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "preset", Short: "Lists of rules by name, for creel run --allow @NAME", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(presetListCommand(a), presetShowCommand(a))
	return cmd
}

func presetListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List presets", Args: args(0, 0),
		Long: `List presets: creel's own, those in /etc/creel/egress and in creel/egress of your
configuration directory, a file NAME.toml each, and those of package managers,
which are made of what the clients on this box are configured for.`,
		RunE: func(*cobra.Command, []string) error {
			dirs, err := presetDirs()
			if err != nil {
				return err
			}
			all, err := preset.Load(dirs...)
			if err != nil {
				return err
			}
			list := []*preset.Preset{}
			for _, name := range preset.Names(all) {
				list = append(list, all[name])
			}
			for _, name := range preset.Clients() {
				if all[name] == nil {
					list = append(list, &preset.Preset{Name: name, Description: "what " + name + " on this box is configured for", Source: "the client's configuration"})
				}
			}
			if a.json {
				return a.writeJSON(list)
			}
			var t table
			t.header("NAME", "WHAT", "FROM")
			for _, p := range list {
				t.row(p.Name, p.Description, p.Source)
			}
			return a.writeTable(&t)
		},
	}
}

func presetShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show the rules of a preset, as a ceiling or a profile has them", Args: args(1, 1),
		Long: `Show the rules of a preset, a line each, to be copied into egress of a ceiling or
a profile. Each list of rules narrows the others: what --allow @NAME asks for is
let through where they allow it too.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			p, err := presetOf(cmd.Context(), names[0])
			if err != nil || a.json {
				return orJSON(a, p, err)
			}
			for _, r := range p.Rules {
				if _, err := fmt.Fprintf(a.Out, "%q,\n", printable(r)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
