package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func volumeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Short: "Volumes: file systems that outlive sandboxes", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(volumeCreateCommand(a), volumeListCommand(a), volumeInspectCommand(a), volumeRemoveCommand(a))
	return cmd
}

func volumeCreateCommand(a *app) *cobra.Command {
	var req api.VolumeRequest
	cmd := &cobra.Command{
		Use:   "create [--size SIZE] [--agent AGENT] NAME",
		Short: "Make a volume of one agent's",
		Long: `Make a volume of one agent's. That agent's sandboxes may write it; those of
your other agents may have it read-only. Mount it with creel run -v NAME:/dst.

It takes of the disk what it holds, and never more than its size.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, names []string) error {
			req.Name = names[0]
			v, err := a.client().CreateVolume(cmd.Context(), req)
			if err != nil || a.json {
				return orJSON(a, v, err)
			}
			_, err = fmt.Fprintln(a.Out, printable(v.Name))
			return err
		},
	}
	sizeVar(cmd.Flags(), &req.Size, "size", "the most it may hold (1G)")
	cmd.Flags().StringVar(&req.Agent, "agent", "", "agent whose sandboxes may write it")
	return cmd
}

func volumeListCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List volumes", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		list, err := a.client().Volumes(cmd.Context())
		if err != nil || a.json {
			return orJSON(a, list, err)
		}
		var t table
		t.header("NAME", "AGENT", "SIZE", "USED", "CREATED", "LAST USED", "USED BY")
		for _, v := range list {
			var by []string
			for _, u := range v.UsedBy {
				by = append(by, u.Name)
			}
			last := ""
			if !v.LastUsed.IsZero() {
				last = ago(v.LastUsed, time.Now())
			}
			t.row(v.Name, v.Agent, size(int64(v.Size)), size(int64(v.Used)), ago(v.Created, time.Now()), last, strings.Join(by, ", "))
		}
		return a.writeTable(&t)
	}}
}

func volumeInspectCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "inspect NAME", Short: "Show all that is known of a volume, as JSON", Args: args(1, 1), RunE: func(cmd *cobra.Command, names []string) error {
		v, err := a.client().Volume(cmd.Context(), names[0])
		if err != nil {
			return err
		}
		return a.writeJSON(v)
	}}
}

func volumeRemoveCommand(a *app) *cobra.Command {
	return a.forEach("rm NAME...", "Remove volumes, with all that is in them", func(ctx context.Context, name string) error {
		return a.client().RemoveVolume(ctx, name)
	})
}
