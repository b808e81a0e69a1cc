package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/client"
)

func auditCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "What was done, by whom, and the proof that nobody changed it", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditLogCommand(a), auditVerifyCommand(a), auditAnchorCommand(a), auditExportCommand(a), auditKeyCommand(a))
	return cmd
}

func auditLogCommand(a *app) *cobra.Command {
	var o client.AuditOptions
	var caller string
	cmd := &cobra.Command{
		Use:   "log [--since TIME] [--until TIME] [--kind KIND] [--action ACTION] [--agent AGENT] [--sandbox ID] [--caller UID] [-f]",
		Short: "Show what was done",
		Long: `Show what you did and what became of it; for root, what everybody did.

Before what is done there is an intent, after it an outcome; what nobody asked
for, such as the end of a command, is a fact. --json has all of each record.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if caller != "" {
				n, err := strconv.ParseUint(caller, 10, 32)
				if err != nil {
					return misuse("--caller is a uid")
				}
				uid := uint32(n)
				o.Caller = &uid
			}
			return a.client().AuditLog(cmd.Context(), o, a.auditLine)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Since, "since", "", "leave out what is older: a time, or how long ago")
	f.StringVar(&o.Until, "until", "", "leave out what is newer")
	f.StringVar(&o.Kind, "kind", "", "only intent, outcome, fact, seal, drop or begin")
	f.StringVar(&o.Action, "action", "", "only this action, such as sandbox.spawn")
	f.StringVar(&o.Agent, "agent", "", "only of this agent")
	f.StringVar(&o.Sandbox, "sandbox", "", "only of this sandbox, as it was named")
	f.StringVar(&caller, "caller", "", "only of this uid")
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what comes")
	return cmd
}

// auditRecord is what is shown of a record's line.
type auditRecord struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Action  string    `json:"action"`
	Op      string    `json:"op"`
	Agent   string    `json:"agent"`
	Sandbox string    `json:"sandbox"`
	Object  string    `json:"object"`
	Command []string  `json:"command"`
	Who     *struct {
		UID uint32 `json:"uid"`
		PID int32  `json:"pid"`
		Exe string `json:"exe"`
	} `json:"who"`
	Result *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Exit    *int   `json:"exit"`
		Reason  string `json:"reason"`
	} `json:"result"`
}

// auditLine shows one record on one line, without what an agent could have put
// there to make a terminal show another.
func (a *app) auditLine(line []byte) error {
	if a.json {
		_, err := fmt.Fprintf(a.Out, "%s\n", line)
		return err
	}
	var r auditRecord
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("the daemon sent a line that is no record: %w", err)
	}
	parts := []string{r.Time.Local().Format("2006-01-02 15:04:05.000"), r.Kind, r.Action}
	add := func(name, v string) {
		if v != "" {
			parts = append(parts, name+v)
		}
	}
	if r.Who != nil {
		parts = append(parts, fmt.Sprintf("uid=%d pid=%d", r.Who.UID, r.Who.PID))
		add("exe=", printable(r.Who.Exe))
	}
	add("agent=", printable(r.Agent))
	add("sandbox=", printable(r.Sandbox))
	add("object=", printable(r.Object))
	if len(r.Command) > 0 {
		add("command=", printable(strings.Join(r.Command, " ")))
	}
	if r.Result != nil {
		add("", printable(r.Result.Code))
		if r.Result.Exit != nil {
			parts = append(parts, fmt.Sprintf("exit=%d", *r.Result.Exit))
		}
		add("reason=", printable(r.Result.Reason))
		add("", printable(r.Result.Message))
	}
	add("op=", printable(r.Op))
	_, err := fmt.Fprintln(a.Out, strings.Join(parts, " "))
	return err
}

func auditVerifyCommand(a *app) *cobra.Command {
	var keys, anchors []string
	cmd := &cobra.Command{
		Use:   "verify --key FILE [--anchor FILE]... PATH...",
		Short: "Look whether an audit log was changed",
		Long: `Look whether records of an audit log were changed, removed, added or moved, and
say where. PATH is a directory of creeld's, its files, or what "creel audit
export" wrote. It needs neither creeld nor the box: --key is what "creel audit
key" printed, --anchor what "creel audit anchor" printed, or a head from the
journal, at an earlier time.

A log that was cut just behind a signed head looks like one that ended there.
Only an anchor of a later head tells: keep some where root of the box is not.

The exit code is 1 when something is wrong.`,
		Args: args(1, -1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			if len(keys) == 0 {
				return misuse(`--key is needed: the file that "creel audit key" printed; one from the log's own box proves nothing against that box`)
			}
			return a.verifyAudit(cmd.Context(), paths, keys, anchors)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file with the box's public key; several where it had several")
	cmd.Flags().StringArrayVar(&anchors, "anchor", nil, "file with a head that was kept elsewhere")
	return cmd
}

func (a *app) verifyAudit(ctx context.Context, paths, keyFiles, anchorFiles []string) error {
	var keys []audit.Public
	for _, p := range keyFiles {
		k, err := a.publicKey(ctx, p)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	var anchors [][]byte
	for _, p := range anchorFiles {
		text, err := a.readBounded(p, 1<<20)
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(text)) {
			if l = strings.TrimSpace(l); l != "" {
				anchors = append(anchors, []byte(l))
			}
		}
	}
	r, err := verifyFiles(paths, keys, anchors)
	if err != nil {
		return err
	}
	if a.json {
		err = a.writeJSON(r)
	} else {
		err = a.writeReport(r, len(anchors))
	}
	if err == nil && !r.OK {
		err = &exitError{code: exitFailed}
	}
	return err
}

func verifyFiles(paths []string, keys []audit.Public, anchors [][]byte) (*audit.Report, error) {
	sources, closeAll, err := audit.OpenSources(paths...)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	return audit.Verify(sources, keys, anchors...)
}

func (a *app) writeReport(r *audit.Report, anchors int) error {
	w := &strings.Builder{}
	for _, f := range r.Findings {
		fmt.Fprintln(w, "WRONG:", printable(f.String()))
	}
	for _, f := range r.Notes {
		fmt.Fprintln(w, "note:", printable(f.String()))
	}
	fmt.Fprintf(w, "records %d to %d, %s to %s, in %d files; signed through %d; %d of %d anchors found\n", r.First, r.Last,
		r.Since.Format(time.RFC3339), r.Until.Format(time.RFC3339), r.Files, r.SignedThrough, r.Anchors, anchors)
	verdict := "whole: nothing was changed, removed, added or moved"
	if !r.OK {
		verdict = "NOT whole"
	} else if r.Anchors == 0 {
		verdict += "; whether something was cut off its end, only an anchor tells"
	}
	fmt.Fprintln(w, verdict)
	_, err := fmt.Fprint(a.Out, w.String())
	return err
}

func auditAnchorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "anchor",
		Short: "Print the last signed head, to keep elsewhere",
		Long: `Print the last signed head of the audit log. Keep it where root of this box is
not: against it, "creel audit verify --anchor" also finds a log that was cut.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.client().AuditHead(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Out, h.Line) // JSON already, and the form that verify takes
			return err
		},
	}
}

func auditExportCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [-o FILE]",
		Short: "Write the whole audit log, to be verified elsewhere",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "" {
				return a.client().ExportAudit(cmd.Context(), a.Out)
			}
			f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			if err := a.client().ExportAudit(cmd.Context(), f); err != nil {
				_ = f.Close()
				return err
			}
			return f.Close()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write, which must not be there")
	return cmd
}

func auditKeyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the public key that the box signs with",
		Long: `Print the public key that the box signs evidence and the audit log with, as PEM.
Keep it on another machine: there it is what "creel evidence --verify" and
"creel audit verify" take.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := a.client().PublicKey(cmd.Context())
			if err != nil || a.json {
				return orJSON(a, k, err)
			}
			_, err = fmt.Fprint(a.Out, printableLines(k.PEM))
			return err
		},
	}
}
