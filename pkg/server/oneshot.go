package server

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
)

// Bounds of what a one-shot exec keeps of each output, in bytes.
const (
	defaultMaxOutput = 256 << 10
	mostMaxOutput    = 4 << 20
)

// pipeMost is the most that a pipe holds (pipe(7), pipe-max-size): of what is
// read after the command's end, the bytes beyond it are another process's.
const pipeMost = 1 << 20

// execOnce runs a command and answers with how it ended and what it wrote. As
// with a stream, the connection is the client: when it closes, or is shut down
// for writing, all processes of the exec are killed.
func (s *Server) execOnce(w http.ResponseWriter, r *http.Request, c Caller, req api.ExecRequest) error {
	input, most, err := oneShot(&req)
	if err != nil {
		return err
	}
	// All of it is in memory at one time, so it is counted before it is there.
	if !s.outputs.take(c.UID, 2*most) {
		return api.Errorf(api.CodeExhausted, "the one-shot execs of this user may have %v of output at one time", api.Size(s.opts.MaxOutput)).
			WithHint("try again when others have ended, ask for a smaller max_output, or use the stream")
	}
	defer s.outputs.give(c.UID, 2*most)
	conn, ok := fdconn.From(r.Context())
	if !ok {
		return errors.New("the connection is not known")
	}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	// net/http looks for the client's end only until the client sends more.
	unwatch, err := s.hangups.watch(conn, cancel)
	if err != nil {
		return err
	}
	defer unwatch()
	sess, err := s.svc.Exec(ctx, c, r.PathValue("ref"), req)
	if err != nil {
		return stopped(ctx, err)
	}
	res, out, errOut, err := collect(ctx, sess, input, most)
	if err != nil {
		return begunError{stopped(ctx, err)}
	}
	return s.answerOutput(w, res, out, errOut)
}

// oneShot takes out of a request what only a one-shot exec has.
func oneShot(req *api.ExecRequest) (input []byte, most int, err error) {
	var problems []api.Problem
	input = []byte(req.Input)
	if req.InputBase64 != "" {
		if req.Input != "" {
			problems = append(problems, api.Problem{Field: "input_base64", Want: "left out; input is given"})
		}
		if input, err = base64.StdEncoding.Strict().DecodeString(req.InputBase64); err != nil {
			problems = append(problems, api.Problem{Field: "input_base64", Want: "standard base64 with padding (" + err.Error() + ")"})
		}
	}
	most = defaultMaxOutput
	if req.MaxOutput != 0 {
		most = int(min(req.MaxOutput, mostMaxOutput+1))
	}
	if most > mostMaxOutput {
		problems = append(problems, api.Problem{Field: "max_output", Value: req.MaxOutput.String(), Want: "at most " + api.Size(mostMaxOutput).String() + "; use the stream for more"})
	}
	if len(problems) > 0 {
		return nil, 0, invalid("the request is not valid", problems...)
	}
	req.Input, req.InputBase64, req.MaxOutput = "", "", 0
	req.Stdin, req.IO = len(input) > 0, "framed"
	return input, most, nil
}

// noOneShot refuses in a stream what only a one-shot exec has.
func noOneShot(req api.ExecRequest) error {
	var problems []api.Problem
	for _, f := range []struct {
		name string
		set  bool
	}{{"input", req.Input != ""}, {"input_base64", req.InputBase64 != ""}, {"max_output", req.MaxOutput != 0}} {
		if f.set {
			problems = append(problems, api.Problem{Field: f.name, Want: "left out; only an exec without an upgrade has it"})
		}
	}
	if len(problems) > 0 {
		return invalid("the request is not valid", problems...)
	}
	return nil
}

// kept is the beginning of one output.
type kept struct {
	most int
	b    []byte
	more bool // there was more
}

func (k *kept) add(p []byte) bool {
	if room := k.most - len(k.b); len(p) > room {
		p, k.more = p[:room], true
	}
	k.b = append(k.b, p...)
	return true // the rest is read all the same, so that the command does not block
}

// collect follows a command to its end. The session is closed when it returns.
func collect(ctx context.Context, sess Session, input []byte, most int) (res api.ExecResult, out, errOut *kept, err error) {
	out, errOut = &kept{most: most}, &kept{most: most}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { err = errors.Join(err, sess.Close()) }() // sets reads and writes free
	if stdin := sess.Stdin(); !isNil(stdin) {
		wg.Go(func() {
			if len(input) > 0 {
				_, _ = stdin.Write(input) // a command need not read its input
			}
			_ = stdin.Close()
		})
	}
	var pumps []*pump
	for _, o := range []struct {
		r io.Reader
		k *kept
	}{{sess.Stdout(), out}, {sess.Stderr(), errOut}} {
		p := &pump{done: make(chan struct{})}
		pumps = append(pumps, p)
		wg.Go(func() { p.run(o.r, o.k.add) })
	}
	if res, err = sess.Wait(ctx); err != nil {
		return res, out, errOut, err
	}
	drain(ctx, pumps, pipeMost)
	return res, out, errOut, ctx.Err()
}

// answerOutput sends an api.ExecOutput piece by piece: as JSON the output can
// be seven times as long, and nobody need hold that.
func (s *Server) answerOutput(w http.ResponseWriter, res api.ExecResult, out, errOut *kept) error {
	head, err := json.Marshal(struct {
		api.ExecResult
		Truncated bool `json:"truncated"`
		TimedOut  bool `json:"timed_out"`
	}{res, out.more || errOut.more, res.Reason == api.ReasonTimeout})
	if err != nil {
		return err
	}
	body := s.bodyTo(w, "application/json", false)
	body.stall = writeTime
	b := bufio.NewWriterSize(body, outputChunk)
	_, _ = b.Write(head[:len(head)-1]) // Flush has the error
	for _, o := range []struct {
		name string
		k    *kept
	}{{"stdout", out}, {"stderr", errOut}} {
		p := o.k.b
		if o.k.more {
			p = wholeText(p)
		}
		_, _ = b.WriteString(`,"` + o.name + `":"`)
		if err := writeText(b, p); err != nil {
			return err
		}
		_, _ = b.WriteString(`"`)
		if !utf8.Valid(p) {
			_, _ = b.WriteString(`,"` + o.name + `_base64":"`)
			enc := base64.NewEncoder(base64.StdEncoding, b)
			_, _ = enc.Write(p)
			_ = enc.Close()
			_, _ = b.WriteString(`"`)
		}
	}
	_, _ = b.WriteString("}\n")
	return b.Flush()
}

// wholeText is p without the beginning of a character at its end.
func wholeText(p []byte) []byte {
	for i := len(p) - 1; i >= max(len(p)-utf8.UTFMax+1, 0); i-- {
		if utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				return p[:i]
			}
			break
		}
	}
	return p
}

// writeText writes the inside of a JSON string.
func writeText(w io.Writer, p []byte) error {
	const chunk = 16 << 10
	for len(p) > 0 {
		n := min(len(p), chunk)
		if n < len(p) {
			n = len(wholeText(p[:n])) // at most three bytes less
		}
		b, err := json.Marshal(string(p[:n]))
		if err != nil {
			return err
		}
		if _, err := w.Write(b[1 : len(b)-1]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
