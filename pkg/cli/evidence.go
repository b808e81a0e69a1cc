package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/boxkey"
)

// evidenceOptions are the flags of creel evidence.
type evidenceOptions struct {
	fresh, verify bool
	file, key     string
}

func evidenceCommand(a *app) *cobra.Command {
	var o evidenceOptions
	cmd := &cobra.Command{
		Use:   "evidence [--fresh] [--verify [--key FILE]] SANDBOX | --verify --file FILE --key FILE",
		Short: "Show the proof of a sandbox's isolation",
		Long: `Show what was read back from the kernel of a sandbox, control by control.

With --verify, only what the box's key has signed is shown, and each piece's
signature is checked. --file takes what "creel evidence --json" wrote, also on
another machine without creeld; --key takes what "creel audit key" wrote.
Without --key the daemon's word on its own key is taken.

The exit code is 1 when a control was not in force, or a signature is not good.`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			switch {
			case (len(refs) == 1) == (o.file != ""):
				return misuse("give a sandbox, or --file")
			case o.file != "" && (o.fresh || !o.verify || o.key == ""):
				return misuse("--file goes with --verify and --key")
			case o.key != "" && !o.verify:
				return misuse("--key goes with --verify")
			}
			return a.evidence(cmd.Context(), refs, o)
		},
	}
	cmd.Flags().BoolVar(&o.fresh, "fresh", false, "read it from the kernel again now")
	cmd.Flags().BoolVar(&o.verify, "verify", false, "check the signatures")
	cmd.Flags().StringVar(&o.file, "file", "", "read the evidence from a file, - for standard input")
	cmd.Flags().StringVar(&o.key, "key", "", "file with the box's public key")
	return cmd
}

func (a *app) evidence(ctx context.Context, refs []string, o evidenceOptions) error {
	var list []api.Evidence
	var err error
	name := o.file
	if o.file != "" {
		list, err = a.readEvidence(o.file)
	} else {
		name = refs[0]
		list, err = a.client().Evidence(ctx, name, o.fresh)
	}
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return api.Errorf(api.CodeNotFound, "there is no evidence of %s", name)
	}
	if o.verify {
		return a.verifyEvidence(ctx, list, o.key)
	}
	if a.json {
		err = a.writeJSON(list)
	} else {
		err = a.writeEvidence(list[0])
	}
	if err == nil && !list[0].OK {
		err = &exitError{code: exitFailed}
	}
	return err
}

// maxEvidence bounds a file of evidence, in bytes.
const maxEvidence = 64 << 20

// readEvidence reads a list of evidence or one piece.
func (a *app) readEvidence(path string) ([]api.Evidence, error) {
	text, err := a.readBounded(path, maxEvidence)
	if err != nil {
		return nil, err
	}
	var list []api.Evidence
	if err := json.Unmarshal(text, &list); err == nil {
		return list, nil
	}
	var one api.Evidence
	if err := json.Unmarshal(text, &one); err != nil {
		return nil, fmt.Errorf("%s: not what creel evidence --json writes: %w", path, err)
	}
	return []api.Evidence{one}, nil
}

// readBounded reads a file, or standard input for "-".
func (a *app) readBounded(path string, most int64) ([]byte, error) {
	in := a.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: longer than %d bytes", path, most)
	}
	return text, err
}

// publicKey is the key of a file, or for an empty path the daemon's.
func (a *app) publicKey(ctx context.Context, path string) (boxkey.Public, error) {
	if path != "" {
		text, err := a.readBounded(path, 64<<10)
		if err != nil {
			return boxkey.Public{}, err
		}
		k, err := boxkey.ParsePublic(text)
		if err != nil {
			return k, fmt.Errorf("%s: %w", path, err)
		}
		return k, nil
	}
	k, err := a.client().PublicKey(ctx)
	if err != nil {
		return boxkey.Public{}, err
	}
	_, _ = fmt.Fprintln(a.Err, "with the key that the daemon says is its own; for a proof against the box itself keep what \"creel audit key\" prints elsewhere and give it with --key")
	return boxkey.ParsePublic([]byte(k.PEM))
}

// verifyEvidence shows what is signed, and nothing else.
func (a *app) verifyEvidence(ctx context.Context, list []api.Evidence, keyPath string) error {
	k, err := a.publicKey(ctx, keyPath)
	if err != nil {
		return err
	}
	var good []api.EvidenceStatement
	var bad []error
	for i, e := range list {
		s, err := statement(k, e)
		if err != nil {
			bad = append(bad, fmt.Errorf("piece %d of %d: %w", i+1, len(list), err))
			continue
		}
		good = append(good, s)
	}
	if len(bad) > 0 {
		return errors.Join(bad...)
	}
	if a.json {
		err = a.writeJSON(good)
	} else {
		err = a.writeStatement(good[0], k.ID(), len(good))
	}
	for _, s := range good {
		if err == nil && !s.OK {
			err = &exitError{code: exitFailed}
		}
	}
	return err
}

// statement is what the signature of a piece of evidence is of. What stands
// beside it must not say otherwise: somebody may read that.
func statement(k boxkey.Public, e api.Evidence) (api.EvidenceStatement, error) {
	var s api.EvidenceStatement
	if e.Signed == nil {
		return s, errors.New("it is not signed: an older creeld took it, or the signature was removed")
	}
	payload, err := k.Open(api.EvidenceType, *e.Signed)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		return s, fmt.Errorf("the signed payload: %w", err)
	}
	e.Signed = nil
	beside, err := json.Marshal(e)
	if err != nil {
		return s, err
	}
	inside, err := json.Marshal(s.Evidence)
	if err != nil {
		return s, err
	}
	if string(beside) != string(inside) {
		return s, errors.New("what stands beside the signature is not what is signed: it was changed")
	}
	return s, nil
}

func (a *app) writeStatement(s api.EvidenceStatement, key string, pieces int) error {
	if err := a.writeEvidence(s.Evidence); err != nil {
		return err
	}
	var t table
	for _, row := range [][2]string{
		{"signed by", key},
		{"pieces", fmt.Sprintf("%d, all signatures good; the newest is shown", pieces)},
		{"image", s.Image + " " + s.ImageDigest},
		{"spec", s.SpecDigest},
		{"agent", s.Agent + " of uid " + fmt.Sprint(s.Caller.UID) + ", profile " + s.Profile},
		{"versions", "creel " + s.Creel + ", " + s.Runtime + ", containerd " + s.Containerd + ", Linux " + s.Kernel},
	} {
		t.row(row[0], row[1])
	}
	return a.writeTable(&t)
}

func (a *app) writeEvidence(e api.Evidence) error {
	var t table
	t.header("", "CONTROL", "EXPECTED", "OBSERVED")
	bad := 0
	for _, c := range e.Controls {
		mark := cell{"ok", green}
		if !c.OK {
			mark = cell{"FAIL", red}
			bad++
		}
		t.row(mark, c.Name, shorten(c.Expected), shorten(c.Observed))
	}
	if err := a.writeTable(&t); err != nil {
		return err
	}
	verdict := fmt.Sprintf("all %d controls in force", len(e.Controls))
	if bad > 0 || !e.OK {
		verdict = fmt.Sprintf("%d of %d controls NOT in force", bad, len(e.Controls))
	}
	if _, err := fmt.Fprintf(a.Out, "\nsandbox %s: %s (%s, %s)\n", printable(e.Sandbox), verdict,
		printable(e.Why), e.Taken.Local().Format(time.RFC3339)); err != nil {
		return err
	}
	for _, w := range e.Weaker {
		if _, err := fmt.Fprintf(a.Out, "weaker here: %s\n", printable(w)); err != nil {
			return err
		}
	}
	return nil
}

// shorten keeps a long value from pushing the table off the screen; --json has
// all of it.
func shorten(s string) string {
	const most = 64
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-3]) + "..."
}
