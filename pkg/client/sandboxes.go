package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Spawn launches a sandbox; it runs and is proven when Spawn returns.
//
// Each mount's Source is opened here, with this process's own rights, and
// sent as a descriptor; a Source that cannot be opened is reported with the
// others before anything is sent. A volume's name is sent as it is. req itself
// is not changed.
func (c *Client) Spawn(ctx context.Context, req api.SpawnRequest) (*api.SpawnResult, error) {
	out, _, err := c.spawn(ctx, wireRequest{method: http.MethodPost, target: route("sandboxes")}, req)
	return out, err
}

// SpawnOnce is Spawn for a request that may have to be sent again, when its
// answer was lost. key names it: 1 to 255 printable ASCII characters without
// spaces, never used for another. When it was sent before, within ten minutes,
// the answer is the same sandbox as it is now, and made is false. The error is
// of class conflict if the key was used for another request, or the sandbox
// has been removed.
func (c *Client) SpawnOnce(ctx context.Context, key string, req api.SpawnRequest) (res *api.SpawnResult, made bool, err error) {
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, false, &api.Error{Code: api.CodeInvalid, Message: "the request cannot be sent", Problems: []api.Problem{{Field: "key", Value: key, Want: "printable ASCII characters without spaces"}}}
	}
	return c.spawn(ctx, wireRequest{method: http.MethodPost, target: route("sandboxes"), key: key}, req)
}

// Ensure is Spawn, unless there is a sandbox of the name in req, which is
// required. If that was made of the same it is the answer, with its newest
// evidence, whatever became of it since, and made is false; else the error is
// of class conflict, and each of its problems is a difference.
func (c *Client) Ensure(ctx context.Context, req api.SpawnRequest) (res *api.SpawnResult, made bool, err error) {
	if req.Name == "" {
		return nil, false, &api.Error{Code: api.CodeInvalid, Message: "the request cannot be sent", Problems: []api.Problem{{Field: "name", Want: "given"}}}
	}
	return c.spawn(ctx, wireRequest{method: http.MethodPut, target: route("sandboxes", req.Name)}, req)
}

// SpawnOpened is Spawn with directories from OpenSources, one for each mount
// that is not a volume, instead of the mounts' sources, which are only shown.
// The directories stay open, for the next one.
func (c *Client) SpawnOpened(ctx context.Context, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error) {
	out, _, err := c.send(ctx, wireRequest{method: http.MethodPost, target: route("sandboxes")}, req, dirs)
	return out, err
}

// spawn sends r with req and its directories. made is false if the sandbox was
// there before.
func (c *Client) spawn(ctx context.Context, r wireRequest, req api.SpawnRequest) (res *api.SpawnResult, made bool, err error) {
	dirs, err := OpenSources(req.Mounts)
	if err != nil {
		return nil, false, err
	}
	defer closeAll(dirs)
	return c.send(ctx, r, req, dirs)
}

// Explain says what Spawn would be answered now, and has no effect.
func (c *Client) Explain(ctx context.Context, req api.SpawnRequest) (*api.Decision, error) {
	dirs, err := OpenSources(req.Mounts)
	if err != nil {
		return nil, err
	}
	defer closeAll(dirs)
	r := wireRequest{method: http.MethodPost, target: route("explain")}
	if err := r.attach(req, dirs); err != nil {
		return nil, err
	}
	w, err := c.openWire(ctx, r)
	if err != nil {
		return nil, err
	}
	defer w.close()
	var out api.Decision
	if err := json.NewDecoder(io.LimitReader(w.answer.Body, maxAnswer)).Decode(&out); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return &out, nil
}

// ExplainPaths is Explain for a request whose directories are named and not opened,
// as clients that cannot send descriptors have them.
func (c *Client) ExplainPaths(ctx context.Context, req api.SpawnRequest) (*api.Decision, error) {
	var out api.Decision
	if err := c.call(ctx, request{method: http.MethodPost, path: route("explain"), in: req}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// attach puts a spawn request and its directories, one for each mount that is
// not a volume, into r.
func (r *wireRequest) attach(req api.SpawnRequest, dirs []*os.File) (err error) {
	req.Mounts = slices.Clone(req.Mounts)
	used := 0
	for i := range req.Mounts {
		if req.Mounts[i].Volume == "" {
			fd := used
			req.Mounts[i].FD = &fd
			used++
		}
	}
	if used != len(dirs) {
		return fmt.Errorf("%d directories for %d mounts of directories", len(dirs), used)
	}
	r.dirs = dirs
	if r.body, err = json.Marshal(req); err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, r wireRequest, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error) {
	if err := r.attach(req, dirs); err != nil {
		return nil, false, err
	}
	// A connection of its own: the descriptors belong to exactly this request.
	w, err := c.openWire(ctx, r)
	if err != nil {
		return nil, false, err
	}
	defer w.close()
	var out api.SpawnResult
	if err := json.NewDecoder(io.LimitReader(w.answer.Body, maxAnswer)).Decode(&out); err != nil {
		return nil, false, readError(ctx, fmt.Errorf("decode the daemon's answer: %w", err))
	}
	made = w.answer.StatusCode == http.StatusCreated && w.answer.Header.Get("Creel-Replayed") == ""
	return &out, made, nil
}

// OpenSources opens the source directory of every mount that is not a volume,
// in their order. Who launches many sandboxes with the same mounts opens them
// once: a path that leads through a directory that an agent may write can lead
// elsewhere the next time.
//
// O_PATH asks for no right on the directory beyond reaching it; what the
// sandbox may do there is decided by the daemon from the descriptor. The path
// is resolved by the kernel for this process, symbolic links included: the
// user named it.
func OpenSources(mounts []api.Mount) ([]*os.File, error) {
	var dirs []*os.File
	var problems []api.Problem
	for i, m := range mounts {
		if m.Volume != "" {
			continue
		}
		f, err := openDir(m.Source)
		if err != nil {
			problems = append(problems, api.Problem{
				Field: fmt.Sprintf("mounts[%d].source", i), Value: m.Source, Want: wantDir(err),
			})
			continue
		}
		dirs = append(dirs, f)
	}
	if len(problems) > 0 {
		closeAll(dirs)
		return nil, &api.Error{Code: api.CodeInvalid, Message: "the request cannot be sent", Problems: problems}
	}
	return dirs, nil
}

func openDir(path string) (*os.File, error) {
	if path == "" {
		return nil, unix.ENOENT
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func wantDir(err error) string {
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return "a directory; a single file cannot be mounted, mount the directory that holds it"
	case errors.Is(err, unix.ENOENT):
		return "a directory that exists; create it first"
	case errors.Is(err, unix.EACCES):
		return "a directory that you can reach (permission denied)"
	}
	return "a directory that can be opened (" + err.Error() + ")"
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// ListOptions select sandboxes. The zero value lists those that have not ended.
type ListOptions struct {
	// All includes those that have ended.
	All bool
	// Labels must all be there, with these values.
	Labels map[string]string
	// States, where there are any, are those wanted; they imply All.
	States []api.State
	// Agents, where there are any, are those wanted.
	Agents []string
	// Images, where there are any, are those wanted: references as they were
	// asked for, or digests.
	Images []string
}

// List returns the sandboxes that the caller may see, newest first.
func (c *Client) List(ctx context.Context, opts ListOptions) ([]api.Sandbox, error) {
	out, _, err := c.ListPage(ctx, opts, Page{})
	return out, err
}

// ListPage is List, a page at a time. next is empty after the last.
func (c *Client) ListPage(ctx context.Context, opts ListOptions, p Page) (out []api.Sandbox, next string, err error) {
	q := url.Values{}
	p.set(q)
	if opts.All {
		q.Set("all", "true")
	}
	addLabels(q, opts.Labels)
	for _, s := range opts.States {
		q.Add("state", string(s))
	}
	for name, values := range map[string][]string{"agent": opts.Agents, "image": opts.Images} {
		for _, v := range values {
			q.Add(name, v)
		}
	}
	err = c.call(ctx, request{method: http.MethodGet, path: route("sandboxes"), query: q, next: &next}, &out)
	return out, next, err
}

func addLabels(q url.Values, labels map[string]string) {
	for k, v := range labels {
		q.Add("label", k+"="+v)
	}
}

// Inspect returns one sandbox. Like every ref, it is an id, a name, or the
// start of an id that no other sandbox shares.
func (c *Client) Inspect(ctx context.Context, ref string) (*api.Sandbox, error) {
	var out api.Sandbox
	if err := c.call(ctx, request{method: http.MethodGet, path: route("sandboxes", ref)}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Remove removes a sandbox that has ended; with force, a running one too.
func (c *Client) Remove(ctx context.Context, ref string, force bool) error {
	r := request{method: http.MethodDelete, path: route("sandboxes", ref)}
	if force {
		r.query = url.Values{"force": {"true"}}
	}
	return c.call(ctx, r, nil)
}

// Stop asks the main command to end and kills the sandbox after the grace
// (nil means the daemon's default). It returns how the sandbox has ended.
func (c *Client) Stop(ctx context.Context, ref string, grace *time.Duration) (*api.WaitResult, error) {
	var in api.StopRequest
	if grace != nil {
		d := api.Duration(*grace)
		in.Grace = &d
	}
	var out api.WaitResult
	if err := c.post(ctx, ref, "stop", in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Kill sends a signal, by name without SIG or by number, to the main command;
// "KILL" or "" ends the whole sandbox.
func (c *Client) Kill(ctx context.Context, ref, signal string) error {
	return c.post(ctx, ref, "kill", api.KillRequest{Signal: signal}, nil)
}

// Pause freezes every process of the sandbox.
func (c *Client) Pause(ctx context.Context, ref string) error {
	return c.post(ctx, ref, "pause", struct{}{}, nil)
}

// Resume thaws a paused sandbox.
func (c *Client) Resume(ctx context.Context, ref string) error {
	return c.post(ctx, ref, "resume", struct{}{}, nil)
}

func (c *Client) post(ctx context.Context, ref, verb string, in, out any) error {
	return c.call(ctx, request{method: http.MethodPost, path: route("sandboxes", ref, verb), in: in}, out)
}

// Wait returns when the sandbox has ended, at once if it had already.
func (c *Client) Wait(ctx context.Context, ref string) (*api.WaitResult, error) {
	var out api.WaitResult
	if err := c.call(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "wait")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Diff returns at most limit changes of a sandbox to its root, 0 for as many
// as the daemon gives.
func (c *Client) Diff(ctx context.Context, ref string, limit int) (*api.Diff, error) {
	r := request{method: http.MethodGet, path: route("sandboxes", ref, "diff")}
	if limit > 0 {
		r.query = url.Values{"limit": {strconv.Itoa(limit)}}
	}
	var out api.Diff
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Stats returns what the sandbox uses now.
func (c *Client) Stats(ctx context.Context, ref string) (*api.Stats, error) {
	var out api.Stats
	if err := c.call(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "stats")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Top returns the processes of a running or paused sandbox.
func (c *Client) Top(ctx context.Context, ref string) (*api.Top, error) {
	var out api.Top
	if err := c.call(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "top")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Execs returns the execs of a sandbox that run or are kept, by their start,
// also after its end. labels must all be there, with these values.
func (c *Client) Execs(ctx context.Context, ref string, labels map[string]string) ([]api.Exec, error) {
	q := url.Values{}
	addLabels(q, labels)
	var out []api.Exec
	err := c.call(ctx, request{method: http.MethodGet, path: route("sandboxes", ref, "execs"), query: q}, &out)
	return out, err
}

// Evidence returns the proofs of the sandbox's isolation that are kept, newest
// first; with fresh, one that is read from the kernel now comes before them.
func (c *Client) Evidence(ctx context.Context, ref string, fresh bool) ([]api.Evidence, error) {
	r := request{method: http.MethodGet, path: route("sandboxes", ref, "evidence")}
	if fresh {
		r.query = url.Values{"fresh": {"true"}}
	}
	var out []api.Evidence
	err := c.call(ctx, r, &out)
	return out, err
}

// Events calls fn for each event after the sequence number after (0: all that
// are kept) and then for each new one, until fn fails, the context ends or the
// daemon stops.
func (c *Client) Events(ctx context.Context, after uint64, fn func(api.Event) error) error {
	r := request{method: http.MethodGet, path: route("events")}
	if after > 0 {
		r.query = url.Values{"after": {strconv.FormatUint(after, 10)}}
	}
	body, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	return readSSE(ctx, body, fn)
}

// maxLine bounds one event or list line.
const maxLine = 1 << 20

// readSSE reads the data lines of a server-sent event stream. creeld writes
// each event's JSON on one data line.
func readSSE(ctx context.Context, r io.Reader, fn func(api.Event) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	const prefix = "data:"
	for sc.Scan() {
		line := sc.Bytes()
		if len(line) < len(prefix) || string(line[:len(prefix)]) != prefix {
			continue // event:, id:, retry: and comments that keep the connection alive
		}
		var ev api.Event
		if err := json.Unmarshal(line[len(prefix):], &ev); err != nil {
			return fmt.Errorf("decode event: %w", err)
		}
		if err := fn(ev); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return sc.Err()
}
