package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/learn"
)

func egressLearnCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "learn SANDBOX", Short: "Propose the smallest policy out of what a sandbox reached",
		Long: `Propose the smallest policy out of what a sandbox reached, as a preset to be read,
put into creel/egress of your configuration directory, and used by its name. It is
within all who had a say, since they let it. What was refused is in it as comments.

To have a sandbox reach more than it would, make it with a profile that observes.`,
		Example: "  creel egress learn web > ~/.config/creel/egress/web.toml\n  creel run --allow @web -- agent",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			sb, err := a.client().Inspect(cmd.Context(), refs[0])
			if err != nil {
				return err
			}
			var seen []learn.Seen
			err = a.client().AuditLog(cmd.Context(), client.AuditOptions{Kind: "fact", Sandbox: sb.ID}, func(line []byte) error {
				var r struct {
					Action string            `json:"action"`
					Detail map[string]string `json:"detail"`
				}
				if err := json.Unmarshal(line, &r); err != nil {
					return fmt.Errorf("the daemon sent a line that is no record: %w", err)
				}
				if d := r.Detail; r.Action == "egress.allowed" || r.Action == "egress.denied" {
					seen = append(seen, learn.Seen{Allowed: r.Action == "egress.allowed", To: d["to"], What: d["what"], By: d["by"], Scheme: d["scheme"], Method: d["method"], Path: d["path"]})
				}
				return nil
			})
			if err != nil {
				return err
			}
			got := learn.Policy(seen)
			if a.json {
				return a.writeJSON(got)
			}
			_, err = io.WriteString(a.Out, learnedText(sb, got))
			return err
		},
	}
}

// learnedText is a preset's file.
func learnedText(sb *api.Sandbox, got learn.Learned) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What sandbox %s (agent %s, profile %s) reached.\n", printable(sb.Name), printable(sb.Agent), printable(sb.Profile))
	if !sb.Observe {
		b.WriteString("# Its profile does not observe: what it was refused may be missing.\n")
	}
	for _, to := range got.Addresses {
		fmt.Fprintf(&b, "# An address without a name, to be thought about: %s\n", printable(to))
	}
	for _, r := range got.Refused {
		fmt.Fprintf(&b, "# Refused by %s: %s\n", printable(r.By), printable(r.To))
	}
	fmt.Fprintf(&b, "description = %s\nrules = [\n", strconv.Quote("learned from "+printable(sb.Name)))
	for _, r := range got.Rules {
		fmt.Fprintf(&b, "  %s,\n", strconv.Quote(r))
	}
	b.WriteString("]\n")
	return b.String()
}
