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

// LogOptions say what of the main command's kept output is wanted.
type LogOptions struct {
	// Follow goes on with what comes, until the sandbox ends.
	Follow bool
	// Tail is how many of the last lines; negative is all.
	Tail int
	// Since leaves out what is older. The zero time leaves out nothing.
	Since time.Time
}

// Logs copies the main command's kept output to out and errOut.
func (c *Client) Logs(ctx context.Context, ref string, opts LogOptions, out, errOut io.Writer) error {
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
	body, err := c.do(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "logs"), query: q})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	r := stream.NewReader(body)
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
			err = writeAll(out, f.Payload)
		case stream.Stderr:
			err = writeAll(errOut, f.Payload)
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
