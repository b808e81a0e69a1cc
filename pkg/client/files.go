package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"
)

// The file operations happen inside the sandbox with the agent's rights.
// Every path is absolute, in the sandbox.

func (c *Client) files(method, ref, verb string, q url.Values) request {
	path := route("sandboxes", ref, "files")
	if verb != "" {
		path += "/" + verb
	}
	return request{method: method, path: path, query: q}
}

// ReadFile opens a regular file of the sandbox. The caller closes it.
func (c *Client) ReadFile(ctx context.Context, ref, path string) (io.ReadCloser, error) {
	return c.do(ctx, c.files(http.MethodGet, ref, "", url.Values{"path": {path}}))
}

// WriteOptions say how a file is written.
type WriteOptions struct {
	Mode fs.FileMode // permission bits only
	// Parents makes the directories above it.
	Parents bool
	// Exclusive makes it an error of class conflict that the file exists.
	Exclusive bool
}

// WriteFile makes or replaces a file with the bytes of r; size is their
// number, -1 when it is not known.
func (c *Client) WriteFile(ctx context.Context, ref, path string, opts WriteOptions, r io.Reader, size int64) error {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(opts.Mode.Perm()), 8)}}
	for name, on := range map[string]bool{"parents": opts.Parents, "exclusive": opts.Exclusive} {
		if on {
			q.Set(name, "true")
		}
	}
	req := c.files(http.MethodPut, ref, "", q)
	// Without the wrapper net/http would close r, which is the caller's.
	req.body, req.size = io.NopCloser(r), size
	if size == 0 {
		req.body = http.NoBody
	}
	return c.call(ctx, req, nil)
}

// RemoveFile removes a file or an empty directory; with recursive, a tree.
func (c *Client) RemoveFile(ctx context.Context, ref, path string, recursive bool) error {
	q := url.Values{"path": {path}}
	if recursive {
		q.Set("recursive", "true")
	}
	return c.call(ctx, c.files(http.MethodDelete, ref, "", q), nil)
}

// StatFile describes a file; a symbolic link at the end is not followed.
func (c *Client) StatFile(ctx context.Context, ref, path string) (*api.FileInfo, error) {
	var out api.FileInfo
	if err := c.call(ctx, c.files(http.MethodGet, ref, "stat", url.Values{"path": {path}}), &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Mkdir makes a directory; with parents, those above it too, and it is no
// error that it exists.
func (c *Client) Mkdir(ctx context.Context, ref, path string, parents bool) error {
	q := url.Values{"path": {path}}
	if parents {
		q.Set("parents", "true")
	}
	return c.call(ctx, c.files(http.MethodPost, ref, "mkdir", q), nil)
}

// RenameFile moves a file or directory, replacing a file at to.
func (c *Client) RenameFile(ctx context.Context, ref, from, to string) error {
	return c.call(ctx, c.files(http.MethodPost, ref, "rename", url.Values{"from": {from}, "to": {to}}), nil)
}

// ListDir gives the entries of a directory to fn as they arrive, at most
// limit (0: the daemon's), and says whether there were more.
func (c *Client) ListDir(ctx context.Context, ref, dir string, limit int, fn func(api.FileInfo) error) (truncated bool, err error) {
	q := url.Values{"path": {dir}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	body, err := c.do(ctx, c.files(http.MethodGet, ref, "list", q))
	if err != nil {
		return false, err
	}
	defer func() { _ = body.Close() }()
	truncated, err = readList(body, fn)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return truncated, err
}

// readList reads one entry per line and a last line that says how it ended.
// Without that line the list was cut off, which must not pass for a short
// directory.
func readList(r io.Reader, fn func(api.FileInfo) error) (truncated bool, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	for sc.Scan() {
		var line struct {
			api.FileInfo
			Truncated *bool      `json:"truncated"`
			Error     *api.Error `json:"error"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return false, fmt.Errorf("decode list entry: %w", err)
		}
		switch {
		case line.Error != nil:
			return false, line.Error
		case line.Truncated != nil:
			return *line.Truncated, nil
		}
		if err := fn(line.FileInfo); err != nil {
			return false, err
		}
	}
	if err := sc.Err(); err != nil {
		return false, fmt.Errorf("read list: %w", err)
	}
	return false, errors.New("the daemon ended the list early")
}
