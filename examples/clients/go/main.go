// Command go is a client of creeld with pkg/client.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name string, w io.Writer) error {
	c := client.New("") // CREEL_SOCKET, or /run/creel/creel.sock
	res, _, err := c.Ensure(ctx, api.SpawnRequest{Name: name, Limits: api.Limits{Memory: 128 << 20, TTL: api.Duration(10 * time.Minute)}})
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "state:", res.Sandbox.State)

	once, err := c.ExecOnce(ctx, name, api.ExecRequest{Command: []string{"tr", "a-z", "A-Z"}, Input: "hello", Timeout: api.Duration(30 * time.Second)})
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "one shot:", once.ExitCode, once.Stdout)

	var out, errOut bytes.Buffer
	end, err := c.Exec(ctx, name, api.ExecRequest{Command: []string{"sh", "-c", "wc -c; echo oops >&2; exit 7"}, Stdin: true},
		client.Stdio{In: strings.NewReader(strings.Repeat("x", 200_000)), Out: &out, Err: &errOut})
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "stream:", end.ExitCode, strings.TrimSpace(out.String()), strings.TrimSpace(errOut.String()))
	return c.Remove(ctx, name, true)
}
