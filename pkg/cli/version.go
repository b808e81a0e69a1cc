package cli

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of creel and of the daemon",
		Args:  args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context()) },
	}
}

// version shows the client's own part even when the daemon is down: that is
// when people ask.
func (a *app) version(ctx context.Context) error {
	d, err := a.client().Version(ctx)
	if a.json {
		out := map[string]any{"client": map[string]string{"creel": api.BuildVersion, "go": runtime.Version()}}
		if err == nil {
			out["daemon"] = d
		}
		if werr := a.writeJSON(out); werr != nil {
			return werr
		}
		return err
	}
	var t table
	t.row("creel", api.BuildVersion, runtime.Version())
	if err == nil {
		t.row("creeld", d.Creel, d.Go)
		t.row("api", d.API, "")
		t.row("containerd", d.Containerd, "")
		t.row("runtime", d.Runtime, d.RuntimeVer)
		t.row("kernel", d.Kernel, "cgroup "+d.Cgroup)
	}
	if werr := a.writeTable(&t); werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("creeld: %w", err)
	}
	return nil
}
