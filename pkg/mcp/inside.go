package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

const (
	maxWrite = 1 << 20  // bytes of a file
	defRead  = 64 << 10 // bytes of a file, unless asked for more
	// The daemon ends a command in time; this is for a daemon that does not.
	overtime = 30 * time.Second
)

type execInput struct {
	Sandbox        string            `json:"sandbox"`
	Command        []string          `json:"command"`
	Env            map[string]string `json:"env"`
	Workdir        string            `json:"workdir"`
	Stdin          *string           `json:"stdin"`
	TimeoutSeconds int               `json:"timeout_seconds"`
}

// result is how a command that was waited for ended.
type result struct {
	ExitCode  int              `json:"exit_code"` // 128+n for signal n, 126 and 127 as shells, 124 timed out
	Reason    string           `json:"reason"`
	Error     string           `json:"error,omitempty"` // why it did not start
	Stdout    string           `json:"stdout"`
	Stderr    string           `json:"stderr"`
	Truncated bool             `json:"truncated"`
	LimitsHit map[string]int64 `json:"limits_hit,omitempty"`
	TookMS    int64            `json:"took_ms"`
}

func (s *server) exec(ctx context.Context, in execInput) (result, error) {
	timeout, err := s.timeout(in.TimeoutSeconds)
	if err != nil {
		return result{}, err
	}
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return result{}, err
	}
	return s.command(ctx, sb.ID, api.ExecRequest{
		Command: in.Command, Env: in.Env, Workdir: in.Workdir, Timeout: api.Duration(timeout),
	}, in.Stdin)
}

// command runs one to its end. A call that is given up ends it.
func (s *server) command(ctx context.Context, id string, req api.ExecRequest, stdin *string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, req.Timeout.D()+overtime)
	defer cancel()
	var out, errOut window
	stdio := client.Stdio{Out: &out, Err: &errOut}
	if stdin != nil {
		req.Stdin, stdio.In = true, strings.NewReader(*stdin)
	}
	res, err := s.Client.Exec(ctx, id, req, stdio)
	if err != nil {
		return result{}, err
	}
	return result{
		ExitCode: res.ExitCode, Reason: string(res.Reason), Error: res.Error,
		Stdout: out.text(), Stderr: errOut.text(), Truncated: out.omitted() > 0 || errOut.omitted() > 0,
		LimitsHit: res.LimitsHit, TookMS: res.Took.D().Milliseconds(),
	}, nil
}

type readInput struct {
	Sandbox  string `json:"sandbox"`
	Path     string `json:"path"`
	MaxBytes int    `json:"max_bytes"`
}

type readOutput struct {
	Content   string `json:"content"`
	Encoding  string `json:"encoding"` // text or base64
	Bytes     int    `json:"bytes"`    // in content, decoded
	Truncated bool   `json:"truncated"`
}

func (s *server) read(ctx context.Context, in readInput) (readOutput, error) {
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return readOutput{}, err
	}
	if in.MaxBytes == 0 {
		in.MaxBytes = defRead
	}
	f, err := s.Client.ReadFile(ctx, sb.ID, in.Path)
	if err != nil {
		return readOutput{}, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, int64(in.MaxBytes)+1))
	if err != nil {
		return readOutput{}, err
	}
	out := readOutput{Encoding: "text", Truncated: len(b) > in.MaxBytes}
	if out.Truncated {
		b = b[:in.MaxBytes]
		// A character that was cut in two does not make a text binary.
		if whole := wholeRunes(b); utf8.Valid(whole) && len(whole) > 0 {
			b = whole
		}
	}
	out.Content, out.Bytes = string(b), len(b)
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		out.Content, out.Encoding = base64.StdEncoding.EncodeToString(b), "base64"
	}
	return out, nil
}

type writeInput struct {
	Sandbox  string `json:"sandbox"`
	Path     string `json:"path"`
	Content  string `json:"content"`
	Encoding string `json:"encoding"`
	Mode     string `json:"mode"`
}

type writeOutput struct {
	Path  string `json:"path"`
	Bytes int    `json:"bytes"`
}

func (s *server) write(ctx context.Context, in writeInput) (writeOutput, error) {
	content := []byte(in.Content)
	if in.Encoding == "base64" {
		var err error
		if content, err = base64.StdEncoding.DecodeString(in.Content); err != nil {
			return writeOutput{}, invalid("content", "base64 (RFC 4648, with padding): "+err.Error())
		}
	}
	if len(content) > maxWrite {
		return writeOutput{}, api.Errorf(api.CodeTooLarge, "content has %d bytes, %d at most", len(content), maxWrite).
			WithHint("write it in parts, and join them with exec")
	}
	mode := fs.FileMode(0o644)
	if in.Mode != "" {
		n, err := strconv.ParseUint(in.Mode, 8, 9)
		if err != nil {
			return writeOutput{}, invalid("mode", "three octal digits")
		}
		mode = fs.FileMode(n)
	}
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return writeOutput{}, err
	}
	if err := s.Client.WriteFile(ctx, sb.ID, in.Path, client.WriteOptions{Mode: mode}, bytes.NewReader(content), int64(len(content))); err != nil {
		return writeOutput{}, err
	}
	return writeOutput{Path: in.Path, Bytes: len(content)}, nil
}
