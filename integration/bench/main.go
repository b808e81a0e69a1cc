// Command bench measures what creel promises of its speed and memory, each
// number beside that of containerd without creel, taken in the same run and
// in turn. It starts a creeld of its own and leaves nothing.
//
// docs/benchmarks.md says what each measure is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// options are the command line's.
type options struct {
	n, rounds, fleet int
	bin, image       string
	output           string
	runtime          string
	only             string
	node             string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.n, "n", 50, "samples of each measure; fewer than 30 are no result")
	f.IntVar(&o.rounds, "rounds", 30, "samples of the burst, which starts -fleet sandboxes each time, and of import")
	f.IntVar(&o.fleet, "fleet", 100, "sandboxes of a burst, and of those that idle")
	f.StringVar(&o.bin, "bin", "bin", "directory of creeld, creel, containerd and the runtimes")
	f.StringVar(&o.image, "image", ".cache/images/base.oci.tar", "OCI archive to run")
	f.StringVar(&o.output, "output", "", "file for the numbers as JSON; none when empty")
	f.StringVar(&o.runtime, "runtime", "crun", "OCI runtime, crun or runc")
	f.StringVar(&o.only, "only", "", "comma-separated stages: fleet, spawn, admission, exec, oneshot, tree, runtime, group, audit, egress, openclaw, import; all when empty")
	f.StringVar(&o.node, "node", ".cache/openclaw/node/node_modules/node/bin/node", "the Node that OpenClaw runs on")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, p := range []*string{&o.bin, &o.image, &o.node} {
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	if o.n < 1 || o.rounds < 1 || o.fleet < 1 || f.NArg() > 0 {
		return o, errors.New("counts must be 1 or more, and there are no arguments but flags")
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	h, err := newHost(ctx, o, setup{first: firstID, last: lastID, config: gatewayConfig})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	b := &bench{options: o, host: h}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.bare.close()) }()
	for _, stage := range []struct {
		name string
		fn   func(context.Context) error
	}{
		// The fleet first: what the daemon and containerd grow by is counted
		// from before they have launched much.
		{"fleet", b.fleetStage},
		{"spawn", b.spawnStage},
		{"admission", b.admissionStage},
		{"exec", b.execStage},
		{"oneshot", b.oneshotStage},
		{"tree", b.treeStage},
		{"runtime", b.runtimeStage},
		{"group", b.groupStage},
		{"audit", b.auditStage},
		{"egress", b.egressStage},
		{"openclaw", b.openclawStage},
		// Last: it takes the image away each time.
		{"import", b.importStage},
	} {
		if o.only != "" && !strings.Contains(","+o.only+",", ","+stage.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", stage.name)
		if err := stage.fn(ctx); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	if err := b.report.table(out); err != nil {
		return err
	}
	if o.output == "" {
		return nil
	}
	return b.report.write(o.output)
}
