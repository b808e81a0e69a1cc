package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/creel-sandbox/creel/pkg/stream"
)

// LogOptions say what of the kept output is wanted.
type LogOptions struct {
	// Follow goes on with what comes, until the sandbox ends.
	Follow bool
	// Tail is how many of the last lines; negative is all.
	Tail int
	// Since leaves out what is older. The zero time leaves out nothing.
	Since time.Time
	// Exec is whose: an exec's id; the main command's when empty.
	Exec string
}

// Output is a piece of kept output.
type Output struct {
	Exec   string // an exec's id or "main"; empty for a word of creel's own
	Stderr bool
	Data   []byte // not to be kept
}

// Logs copies kept output to out and errOut.
func (c *Client) Logs(ctx context.Context, ref string, opts LogOptions, out, errOut io.Writer) error {
	return c.logs(ctx, ref, opts, func(o Output) error {
		if o.Stderr {
			return writeAll(errOut, o.Data)
		}
		return writeAll(out, o.Data)
	})
}

// AllLogs gives the kept output of all commands to emit, in the order it came;
// opts.Exec must be empty. It returns emit's error.
func (c *Client) AllLogs(ctx context.Context, ref string, opts LogOptions, emit func(Output) error) error {
	opts.Exec = "all"
	return c.logs(ctx, ref, opts, emit)
}

func (c *Client) logs(ctx context.Context, ref string, opts LogOptions, emit func(Output) error) error {
	q := url.Values{}
	if opts.Follow {
		q.Set("follow", "true")
	}
	if opts.Tail >= 0 {
		q.Set("tail", strconv.Itoa(opts.Tail))
	}
	if !opts.Since.IsZero() {
		q.Set("since", opts.Since.Format(time.RFC3339Nano))
	}
	if opts.Exec != "" {
		q.Set("exec", opts.Exec)
	}
	body, err := c.do(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "logs"), query: q})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	r := stream.NewReader(body)
	whose := "main"
	if opts.Exec != "" && opts.Exec != "all" {
		whose = opts.Exec
	}
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(ctx, err)
		}
		switch f.Type { //nolint:exhaustive // default refuses the others
		case stream.Stdout:
			err = emit(Output{Exec: whose, Data: f.Payload})
		case stream.Stderr:
			err = emit(Output{Exec: whose, Stderr: true, Data: f.Payload})
		case stream.Source:
			whose = string(f.Payload)
		case stream.Error:
			err = streamError(f.Payload)
		default:
			err = fmt.Errorf("the daemon sent a frame of type %v in a log", f.Type)
		}
		if err != nil {
			return err
		}
	}
}
