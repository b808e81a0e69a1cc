package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func systemCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "system", Short: "What creel keeps on disk", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(systemDFCommand(a), systemPruneCommand(a))
	return cmd
}

func systemDFCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Show what is kept on disk, whose it is and what a prune would free",
		Long: `Show what is kept on disk, whose it is and what a prune would free.

Yours; for root everybody's. What images share counts once. Writable layers in
memory count as no bytes: they are in their sandbox's memory limit. No prune
removes a volume.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.client().DiskUsage(cmd.Context())
			if err != nil || a.json {
				return orJSON(a, u, err)
			}
			var t table
			t.header("WHAT", "UID", "COUNT", "SIZE", "RECLAIMABLE")
			for _, r := range u.Rows {
				t.row(r.What, r.UID, r.Count, size(r.Bytes), fmt.Sprintf("%d, %s", r.ReclaimableCount, size(r.ReclaimableBytes)))
			}
			if err := a.writeTable(&t); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "\ndisk: %s of %s free; below %s sandboxes that write are paused\n", size(u.Disk.Free), size(u.Disk.Total), size(u.Disk.Reserve))
			return err
		},
	}
}

func systemPruneCommand(a *app) *cobra.Command {
	var req api.PruneRequest
	cmd := &cobra.Command{
		Use:   "prune [--images] [--until TIME] [--dry-run]",
		Short: "Remove sandboxes that have ended, and images that nothing uses",
		Long: `Remove sandboxes that have ended, with their logs and evidence, and, with
--images, images that no sandbox runs from and that neither the configuration
nor a profile names.

Yours; for root everybody's. What runs is never touched.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.prune(cmd.Context(), req) },
	}
	fl := cmd.Flags()
	fl.BoolVar(&req.Images, "images", false, "images as well")
	durationVar(fl, &req.Until, "until", "keep what ended, or was imported, less than this long ago, such as 7d")
	fl.BoolVar(&req.DryRun, "dry-run", false, "only say what would be removed")
	return cmd
}

func (a *app) prune(ctx context.Context, req api.PruneRequest) error {
	res, err := a.client().Prune(ctx, req)
	if err != nil {
		return err
	}
	failed := false
	for _, i := range res.Items {
		if i.Problem != "" {
			a.say("%s %s: %s", i.What, i.Name, i.Problem)
			failed = true
		}
	}
	if err := a.writePruned(res); err != nil {
		return err
	}
	if failed {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (a *app) writePruned(res *api.PruneResult) error {
	if a.json {
		return a.writeJSON(res)
	}
	var t table
	for _, i := range res.Items {
		if i.Problem != "" {
			continue
		}
		if i.What == "image" {
			i.ID = shortDigest(i.ID)
		}
		t.row(i.What, i.ID, i.Name, size(i.Bytes))
	}
	if err := a.writeTable(&t); err != nil {
		return err
	}
	what := "freed"
	if res.DryRun {
		what = "would be freed"
	}
	_, err := fmt.Fprintf(a.Out, "%s %s\n", size(res.Bytes), what)
	return err
}
