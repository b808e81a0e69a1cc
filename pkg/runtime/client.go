package runtime

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/containerd/containerd/v2/pkg/dialer"
)

// Options say where a Client finds things.
type Options struct {
	// Address is the path of containerd's Unix socket. Required.
	Address string
	// Bin is the directory of crun, runc and the shim. Required, absolute.
	Bin string
	// State is a directory, lost at reboot, for what the OCI runtimes
	// remember of their containers. Required, absolute.
	State string
}

// Client talks to one containerd. It may be used by many goroutines. When
// containerd is away its calls fail with api.CodeUnavailable; the connection
// is made again by itself.
type Client struct {
	opts  Options
	cd    *containerd.Client
	ctrs  containers.Store
	snaps snapshots.Snapshotter
	tasks tasks.TasksClient
	imgs  images.Store

	runtimes map[string]typeurl.Any // runtime name to encoded shim options
	scans    chan struct{}          // held to look into an image; see scan

	orphans sync.Mutex // held to remove one

	// chains are the images that were resolved, by digest: a digest always
	// means the same layers. When they are gone, preparing fails.
	chains sync.Map // string to chain
}

// Connect makes a client of the containerd at o.Address. It does not wait for
// containerd to answer; Version does.
func Connect(o Options) (*Client, error) {
	if !filepath.IsAbs(o.Bin) || !filepath.IsAbs(o.State) || !filepath.IsAbs(o.Address) {
		return nil, fmt.Errorf("containerd client: bin %q, state %q and address %q must be absolute paths", o.Bin, o.State, o.Address)
	}
	cd, err := containerd.New(o.Address,
		containerd.WithDefaultNamespace(Namespace),
		containerd.WithDialOpts([]grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket
			grpc.WithContextDialer(dialer.ContextDialer),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute}),
			grpc.WithConnectParams(grpc.ConnectParams{
				// A restart of containerd takes a tenth of a second.
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: 5 * time.Second,
			}),
		}))
	if err != nil {
		return nil, wrap(err, "containerd client")
	}
	c := &Client{
		opts:     o,
		cd:       cd,
		ctrs:     cd.ContainerService(),
		snaps:    cd.SnapshotService(snapshotter),
		tasks:    cd.TaskService(),
		imgs:     cd.ImageService(),
		runtimes: map[string]typeurl.Any{},
		scans:    make(chan struct{}, 1),
	}
	for _, name := range []string{"crun", "runc"} {
		a, err := c.marshalOptions(name, true)
		if err != nil {
			return nil, fmt.Errorf("options of %s: %w", name, err)
		}
		c.runtimes[name] = a
	}
	return c, nil
}

// Close closes the connection. Sandboxes are not affected.
func (c *Client) Close() error { return c.cd.Close() }

// Version is containerd's version, without "v". It is the health check.
func (c *Client) Version(ctx context.Context) (string, error) {
	v, err := c.cd.Version(ctx)
	if err != nil {
		return "", wrap(err, "containerd version")
	}
	return trimV(v.Version), nil
}

// CheckIDMap returns ErrNoIDMap when layers cannot be id-mapped.
func (c *Client) CheckIDMap(ctx context.Context) error {
	caps, err := c.cd.GetSnapshotterCapabilities(ctx, snapshotter)
	if err != nil {
		return wrap(err, "overlayfs capabilities")
	}
	if !slices.Contains(caps, "remap-ids") {
		return ErrNoIDMap
	}
	return nil
}

// runtimeOptions are the shim's options for an OCI runtime.
func (c *Client) runtimeOptions(name string) (typeurl.Any, error) {
	a, ok := c.runtimes[name]
	if !ok {
		return nil, &api.Error{Code: api.CodeInvalid, Message: "runtime", Problems: []api.Problem{{Field: "runtime", Value: name, Want: "crun or runc"}}}
	}
	if failpoint.On("layer.keyring") {
		return c.marshalOptions(name, false)
	}
	return a, nil
}

func (c *Client) marshalOptions(name string, keyring bool) (typeurl.Any, error) {
	return typeurl.MarshalAny(&options.Options{
		BinaryName: filepath.Join(c.opts.Bin, name),
		Root:       filepath.Join(c.opts.State, "oci"),
		// cgroup paths are ours, for both drivers of the host.
		SystemdCgroup: false,
		// A fresh session keyring: the agent must not see ours.
		NoNewKeyring: !keyring,
	})
}
