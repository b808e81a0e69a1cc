package mcp

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

const (
	maxListed  = 100 // sandboxes in one answer
	maxCommand = 200 // bytes of a command in it
	defTail    = 200 // lines of logs
	defGrace   = 10  // seconds of stop
)

type runInput struct {
	Command        []string          `json:"command"`
	Background     bool              `json:"background"`
	Env            map[string]string `json:"env"`
	Workdir        string            `json:"workdir"`
	Stdin          *string           `json:"stdin"`
	TimeoutSeconds int               `json:"timeout_seconds"`
}

type runOutput struct {
	Sandbox string  `json:"sandbox"` // id
	State   string  `json:"state"`   // running, or removed
	Result  *result `json:"result,omitempty"`
}

// run launches a sandbox. A command that is waited for is an exec in a sandbox
// without one: if this server is killed, the daemon ends the command, and the
// sandbox removes itself at its own limits.
func (s *server) run(ctx context.Context, in runInput) (runOutput, error) {
	wait := len(in.Command) > 0 && !in.Background
	if !wait && in.Stdin != nil {
		return runOutput{}, invalid("stdin", "only with a command that is waited for")
	}
	if len(in.Command) == 0 && (in.Background || in.TimeoutSeconds != 0) {
		return runOutput{}, invalid("command", "a command: background and timeout_seconds are about it")
	}
	timeout, err := s.timeout(in.TimeoutSeconds)
	if err != nil {
		return runOutput{}, err
	}
	req := s.Spawn
	req.Command = nil
	req.Labels = maps.Clone(req.Labels)
	if req.Labels == nil {
		req.Labels = map[string]string{}
	}
	req.Labels[Label] = s.id
	req.Env = maps.Clone(req.Env)
	if req.Env == nil {
		req.Env = map[string]string{}
	}
	maps.Copy(req.Env, in.Env)
	if in.Workdir != "" {
		req.Workdir = in.Workdir
	}
	req.Remove = !s.Keep || wait
	if in.Background {
		// Its logs are for afterwards.
		req.Command, req.Remove = in.Command, false
		if in.TimeoutSeconds != 0 {
			req.Timeout = api.Duration(timeout)
		}
	}
	sb, err := s.spawn(ctx, req)
	if err != nil {
		return runOutput{}, err
	}
	out := runOutput{Sandbox: sb.ID, State: string(sb.State)}
	if !wait {
		return out, nil
	}
	res, err := s.command(ctx, sb.ID, api.ExecRequest{Command: in.Command, Timeout: api.Duration(timeout)}, in.Stdin)
	s.discard(ctx, sb.ID)
	if err != nil {
		return runOutput{}, err
	}
	out.State, out.Result = "removed", &res
	return out, nil
}

// spawn launches, within the number of sandboxes. A call that is given up
// meanwhile does not end the launch but its sandbox, so that the server always
// knows what there is.
func (s *server) spawn(ctx context.Context, req api.SpawnRequest) (*api.Sandbox, error) {
	if err := s.reserve(ctx); err != nil {
		return nil, err
	}
	defer func() {
		s.launches.Lock()
		s.starting--
		s.launches.Unlock()
	}()
	launch, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxSpawn)
	defer cancel()
	res, err := s.Client.SpawnOpened(launch, req, s.dirs)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		s.discard(ctx, res.Sandbox.ID)
		return nil, ctx.Err()
	}
	return &res.Sandbox, nil
}

// reserve counts a launch before it begins. One that the daemon lists already
// counts twice meanwhile, which errs on the right side.
func (s *server) reserve(ctx context.Context) error {
	s.launches.Lock()
	defer s.launches.Unlock()
	have, err := s.mine(ctx)
	if err != nil {
		return err
	}
	if len(have)+s.starting >= s.Sandboxes {
		return api.Errorf(api.CodeExhausted, "this server may have %d sandboxes at once, and has or launches as many", s.Sandboxes).
			WithHint("remove one; list shows them")
	}
	s.starting++
	s.launched = true
	return nil
}

// discard removes a sandbox that is of no more use. If that fails, the end of
// the server removes it.
func (s *server) discard(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitCalls)
	defer cancel()
	_ = s.Client.Remove(ctx, id, true)
}

func (s *server) timeout(seconds int) (time.Duration, error) {
	d := time.Duration(seconds) * time.Second
	switch {
	case d == 0:
		return s.Timeout, nil
	case d > s.Timeout:
		return 0, invalid("timeout_seconds", "at most "+s.Timeout.String()+", which the operator has set")
	}
	return d, nil
}

func invalid(field, want string) error {
	return &api.Error{
		Code: api.CodeInvalid, Message: "the arguments are not valid",
		Problems: []api.Problem{{Field: field, Want: want}},
	}
}

// find is a sandbox that this server may touch, by id or name. All goes by the
// id from here: a name can come to mean another one. A sandbox that is not the
// server's is looked for nowhere, so that it answers like none.
func (s *server) find(ctx context.Context, ref string) (*api.Sandbox, error) {
	if s.All {
		return s.Client.Inspect(ctx, ref)
	}
	have, err := s.mine(ctx)
	if err != nil {
		return nil, err
	}
	for _, sb := range have {
		if sb.ID == ref || sb.Name == ref {
			return &sb, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "no sandbox %q", ref).WithHint("list shows those that there are")
}

type listed struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Reason   string `json:"reason,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
	Command  string `json:"command,omitempty"`
	Created  string `json:"created"`
	Problem  string `json:"problem,omitempty"`
}

type listOutput struct {
	Sandboxes []listed `json:"sandboxes"`
	Truncated bool     `json:"truncated"`
}

// list leaves out what is the host's: ids, pids and where mounts come from.
func (s *server) list(ctx context.Context, _ struct{}) (listOutput, error) {
	var have []api.Sandbox
	var err error
	if s.All {
		have, err = s.Client.List(ctx, client.ListOptions{All: true})
	} else {
		have, err = s.mine(ctx)
	}
	if err != nil {
		return listOutput{}, err
	}
	out := listOutput{Sandboxes: []listed{}}
	for _, sb := range have {
		if len(out.Sandboxes) == maxListed {
			out.Truncated = true
			break
		}
		out.Sandboxes = append(out.Sandboxes, listed{
			ID: sb.ID, Name: sb.Name, State: string(sb.State), Reason: string(sb.Reason), ExitCode: sb.ExitCode,
			Command: clip(strings.Join(sb.Command, " "), maxCommand), Created: sb.Created.UTC().Format(time.RFC3339),
			Problem: clip(sb.Problem, maxCommand),
		})
	}
	return out, nil
}

type logsInput struct {
	Sandbox string `json:"sandbox"`
	Tail    int    `json:"tail"`
}

type logsOutput struct {
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated"`
}

func (s *server) logs(ctx context.Context, in logsInput) (logsOutput, error) {
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return logsOutput{}, err
	}
	if in.Tail == 0 {
		in.Tail = defTail
	}
	var out, errOut window
	if err := s.Client.Logs(ctx, sb.ID, client.LogOptions{Tail: in.Tail}, &out, &errOut); err != nil {
		return logsOutput{}, err
	}
	return logsOutput{Stdout: out.text(), Stderr: errOut.text(), Truncated: out.omitted() > 0 || errOut.omitted() > 0}, nil
}

type stopInput struct {
	Sandbox      string `json:"sandbox"`
	GraceSeconds *int   `json:"grace_seconds"`
}

type stopOutput struct {
	Sandbox  string `json:"sandbox"`
	State    string `json:"state"`
	Reason   string `json:"reason"`
	ExitCode int    `json:"exit_code"`
}

func (s *server) stop(ctx context.Context, in stopInput) (stopOutput, error) {
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return stopOutput{}, err
	}
	grace := defGrace * time.Second
	if in.GraceSeconds != nil {
		grace = time.Duration(*in.GraceSeconds) * time.Second
	}
	res, err := s.Client.Stop(ctx, sb.ID, &grace)
	if err != nil {
		return stopOutput{}, err
	}
	return stopOutput{Sandbox: res.ID, State: string(res.State), Reason: string(res.Reason), ExitCode: res.ExitCode}, nil
}

type removeInput struct {
	Sandbox string `json:"sandbox"`
}

type removeOutput struct {
	Sandbox string `json:"sandbox"`
	State   string `json:"state"`
}

func (s *server) remove(ctx context.Context, in removeInput) (removeOutput, error) {
	sb, err := s.find(ctx, in.Sandbox)
	if err != nil {
		return removeOutput{}, err
	}
	if err := s.Client.Remove(ctx, sb.ID, true); err != nil {
		return removeOutput{}, err
	}
	return removeOutput{Sandbox: sb.ID, State: "removed"}, nil
}
