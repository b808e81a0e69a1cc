package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/egress"
)

func egressCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "egress", Short: "What sandboxes reach, and why not more", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(egressLogCommand(a), egressExplainCommand(a), egressPendingCommand(a), egressApproveCommand(a), egressDenyCommand(a), egressForgetCommand(a), egressLearnCommand(a), egressAllowCommand(a), presetCommand(a))
	return cmd
}

func egressLogCommand(a *app) *cobra.Command {
	o := client.AuditOptions{Kind: "fact"}
	cmd := &cobra.Command{
		Use:   "log [--since TIME] [--until TIME] [--agent AGENT] [-f] [SANDBOX]",
		Short: "Show what was reached, what was refused, and where secrets went",
		Long: `Show what your sandboxes reached, what they were refused and by whom, and where
secrets went: each destination of a sandbox once as allowed, once as denied.`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if len(refs) > 0 {
				sb, err := a.client().Inspect(cmd.Context(), refs[0])
				if err != nil {
					return err
				}
				o.Sandbox = sb.ID
			}
			return a.client().AuditLog(cmd.Context(), o, a.egressLine)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Since, "since", "", "leave out what is older: a time, or how long ago")
	f.StringVar(&o.Until, "until", "", "leave out what is newer")
	f.StringVar(&o.Agent, "agent", "", "only of this agent")
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what comes")
	return cmd
}

// egressLine shows one record, if it is of the network.
func (a *app) egressLine(line []byte) error {
	var r struct {
		Time    time.Time         `json:"time"`
		Action  string            `json:"action"`
		Sandbox string            `json:"sandbox"`
		Detail  map[string]string `json:"detail"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("the daemon sent a line that is no record: %w", err)
	}
	kind, what, _ := strings.Cut(r.Action, ".")
	if kind != "egress" && kind != "secret" {
		return nil
	}
	if a.json {
		_, err := fmt.Fprintf(a.Out, "%s\n", line)
		return err
	}
	parts := []string{r.Time.Local().Format("2006-01-02 15:04:05.000"), r.Sandbox, fmt.Sprintf("%-7s", what), printable(r.Detail["to"])}
	for _, field := range []string{"what", "secret"} {
		if v := r.Detail[field]; v != "" {
			parts = append(parts, field+"="+printable(v))
		}
	}
	if v := r.Detail["why"]; v != "" {
		parts = append(parts, printable(v))
	}
	_, err := fmt.Fprintln(a.Out, strings.Join(parts, " "))
	return err
}

func egressExplainCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "explain SANDBOX HOST[:PORT] [METHOD [PATH]]",
		Short: "Say whether a sandbox may reach something, and who says so",
		Long: `Say whether a sandbox may reach a host, or ask it for a path, and which rules of
all who have a say let it or do not. Port 443 is meant where none is named.

The exit code is 1 when it may not.`,
		Example: "  creel egress explain web api.example.com\n  creel egress explain web api.example.com POST /v1/models",
		Args:    args(2, 4),
		RunE: func(cmd *cobra.Command, words []string) error {
			sb, err := a.client().Inspect(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			q, err := parseQuestion(words[1:])
			if err != nil {
				return err
			}
			return a.explainEgress(sb, q)
		},
	}
}

func egressAllowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "allow SANDBOX RULE...", Short: "Have a sandbox that runs reach more",
		Long: `Have a sandbox that runs reach more than it was made to, by rules as of creel run
--allow. They hold until it ends, and within what its profile, your ceiling and
its parent allow: nobody can widen another's. Connections that are open go on.`,
		Example: "  creel egress pending web\n  creel egress allow web pypi.example.com",
		Args:    args(2, -1),
		RunE: func(cmd *cobra.Command, words []string) error {
			rules, err := expand(cmd.Context(), words[1:])
			if err != nil {
				return err
			}
			sb, err := a.client().AllowEgress(cmd.Context(), words[0], rules)
			if err != nil || a.json {
				return orJSON(a, sb, err)
			}
			_, err = fmt.Fprintf(a.Out, "%s may reach %s\n", printable(sb.Name), printable(strings.Join(rules, "; ")))
			return err
		},
	}
}

// question is what might be reached.
type question struct {
	host   egress.Name
	addr   netip.Addr // without a host
	port   uint16
	method string
	path   egress.Path
}

func parseQuestion(words []string) (q question, err error) {
	r, err := egress.ParseText("tcp " + words[0])
	if err != nil || len(r.Ports) > 1 {
		return q, misuse("%q is no HOST[:PORT]", words[0])
	}
	q.port = 443
	if len(r.Ports) == 1 {
		q.port = r.Ports[0]
	}
	if r.CIDR != "" {
		p, err := netip.ParsePrefix(r.CIDR)
		if err != nil || !p.IsSingleIP() || len(words) > 1 {
			return q, misuse("%q is not one address, of which nothing more can be asked", words[0])
		}
		q.addr = p.Addr()
		return q, nil
	}
	if q.host, err = egress.ParseName(r.Host); err != nil {
		return q, misuse("%q: %v", r.Host, err)
	}
	if len(words) > 1 {
		q.method, q.path = words[1], "/"
	}
	if len(words) > 2 {
		if q.path, err = egress.ParsePath(words[2]); err != nil {
			return q, misuse("%q: %v", words[2], err)
		}
	}
	return q, nil
}

// ask is whether rules let it.
func (q question) ask(s egress.Snapshot) (egress.Grant, error) {
	switch {
	case q.host == "":
		return s.ConnectAddr(q.addr, q.port)
	case q.method == "":
		return s.Connect(q.host, q.port)
	}
	kind := egress.HTTPS
	if q.port == 80 {
		kind = egress.HTTP
	}
	return s.Request(kind, q.host, q.port, q.method, q.path)
}

// egressAnswer is what one who has a say says.
type egressAnswer struct {
	By      string   `json:"by"`
	Allowed bool     `json:"allowed"`
	Rules   []string `json:"rules"` // that let it, or that are about the same host
}

func (a *app) explainEgress(sb *api.Sandbox, q question) error {
	var answers []egressAnswer
	allowed := sb.Network == "policy" && len(sb.Egress) > 0
	for _, party := range sb.Egress {
		pol, problems := egress.ParseLines(party.By, "egress", party.Rules)
		if len(problems) > 0 {
			return fmt.Errorf("%s has rules that this creel does not know", party.By)
		}
		one := egressAnswer{By: party.By}
		g, err := q.ask(egress.NewSnapshot(pol))
		one.Allowed, one.Rules = err == nil, g.Rules
		if no, ok := errors.AsType[*egress.RefusedError](err); ok {
			one.Rules = no.Near
		}
		allowed = allowed && one.Allowed
		answers = append(answers, one)
	}
	if a.json {
		if err := a.writeJSON(map[string]any{"allowed": allowed, "by": answers}); err != nil {
			return err
		}
	} else if err := a.writeAnswers(sb, answers); err != nil {
		return err
	}
	if !allowed {
		return &exitError{1, nil}
	}
	return nil
}

func (a *app) writeAnswers(sb *api.Sandbox, answers []egressAnswer) error {
	if len(answers) == 0 {
		_, err := fmt.Fprintf(a.Out, "%s has no network; creel run --allow gives one\n", printable(sb.Name))
		return err
	}
	var t table
	t.header("", "BY", "RULES")
	for _, one := range answers {
		mark, rules := "ok", strings.Join(one.Rules, "; ")
		if !one.Allowed {
			mark = "NO"
			if rules == "" {
				rules = "none is about that host"
			}
		}
		t.row(mark, one.By, rules)
	}
	return a.writeTable(&t)
}
