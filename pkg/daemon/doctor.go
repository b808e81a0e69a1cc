package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/runtime"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
)

// notStarting is what every check costs that creeld makes at its start.
const notStarting = "creeld does not start"

// Doctor checks the host as a running daemon would, and what that daemon
// would refuse to start for. It starts nothing and changes nothing that lasts.
// path is the configuration's; user and dir are as in the API. Leftovers are
// null: only a daemon that runs knows whose things are whose.
//
// It must run as root.
func Doctor(ctx context.Context, path, user, dir string) (*api.Doctor, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("creeld doctor must run as root; \"creel doctor\" checks what anybody can")
	}
	cfg, more := configuration(path)
	versions, err := runtime.ReadVersions(ctx, cfg.BinDir, cfg.Containerd.Address == "")
	more = append(more, verdict("programs", "answer, from "+cfg.BinDir, errors.Join(err, programs(cfg)), "reinstall creel, or set bin_dir"))
	if addr := cfg.Containerd.Address; addr != "" {
		versions.Containerd, err = existing(ctx, cfg)
		more = append(more, verdict("containerd", "answers on "+addr, err, "start it, or leave out containerd.address"))
	}
	d := &daemon{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	more = append(more,
		verdict("callers", "are known", d.whom(ctx), "mend operators and [[caller]] in "+path),
		verdict("profiles", "can be compiled", d.profiles(ctx), "mend the files in "+cfg.ProfilesDir+"; creel profile show NAME prints those built in"),
		verdict("socket", cfg.Socket+" can be made", server.CheckSocket(cfg.Socket, cfg.SocketGroup), "systemd-sysusers and systemd-tmpfiles --create, after make install"))
	more = append(more, peersCheck(tryPeers()))
	in := inputs(cfg, versions)
	in.User, in.Workspace, in.More = user, dir, more
	h, err := cgroup.Look(cgroup.Options{Root: cfg.Cgroup.Root})
	if in.CgroupErr = err; err == nil {
		in.CgroupVersion, in.CgroupWeaker = h.Version(), h.Weaker()
		defer h.Close()
	}
	out := doctor.Run(ctx, in)
	out.Leftovers = nil
	return &out, nil
}

// configuration is what the file says, or the defaults with what is wrong.
func configuration(path string) (*config.Config, []api.Check) {
	const name = "configuration"
	cfg, err := config.Load(path)
	if err == nil {
		if path == "" {
			path = "the built-in defaults"
		}
		return cfg, []api.Check{verdict(name, path, nil, "")}
	}
	defaults := config.Defaults()
	return &defaults, []api.Check{verdict(name, "", err, "creeld config check; until then the other lines are of the defaults")}
}

// verdict is a check of something without which creeld does not start.
func verdict(name, good string, err error, fix string) api.Check {
	if err != nil {
		return api.Check{Name: name, Status: doctor.Missing, Detail: err.Error(), Cost: notStarting, Fix: fix}
	}
	return api.Check{Name: name, Status: doctor.OK, Detail: good}
}

// peersCheck is what the absence of the control unix_peers costs.
func peersCheck(err error) api.Check {
	const name = "kernel." + unixpeers.Control
	if err == nil {
		return api.Check{Name: name, Status: doctor.OK, Detail: "works: connections of Unix sockets over a sandbox's edge are refused"}
	}
	return api.Check{
		Name: name, Status: doctor.Weaker, Detail: err.Error(),
		Cost: "a Unix socket in a mounted directory connects a sandbox with whoever is outside; profiles that require otherwise, as strict, mount nothing",
		Fix:  "boot a kernel with CONFIG_BPF_LSM and BTF, and with bpf in lsm=",
	}
}

// tryPeers puts the programs in place, with nobody on their list, and takes
// them away.
func tryPeers() (err error) {
	dir, err := os.MkdirTemp("", "creel-doctor-")
	if err != nil {
		return err
	}
	g, err := unixpeers.Open(dir)
	if err == nil {
		err = g.Close()
	}
	return errors.Join(err, unixpeers.Remove(dir))
}

// programs looks for those that have no version to tell.
func programs(cfg *config.Config) error {
	names := []string{"creel-init"}
	if cfg.Containerd.Address == "" {
		names = append(names, "containerd-shim-runc-v2")
	}
	var errs []error
	for _, n := range names {
		st, err := os.Stat(filepath.Join(cfg.BinDir, n))
		if err == nil && (!st.Mode().IsRegular() || st.Mode()&0o111 == 0) {
			err = &fs.PathError{Op: "execute", Path: filepath.Join(cfg.BinDir, n), Err: fs.ErrPermission}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// existing asks the containerd of containerd.address.
func existing(ctx context.Context, cfg *config.Config) (string, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// Connect does not tell a socket that is not there from one that is slow.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", cfg.Containerd.Address)
	if err != nil {
		return "", err
	}
	_ = conn.Close()
	rt, err := runtime.Connect(runtime.Options{Address: cfg.Containerd.Address, Bin: cfg.BinDir, State: cfg.RunDir})
	if err != nil {
		return "", err
	}
	defer rt.Close()
	return rt.Version(ctx)
}

// inputs are what a running daemon and one that does not start tell alike.
func inputs(cfg *config.Config, v runtime.Versions) doctor.Inputs {
	return doctor.Inputs{
		StateDir: cfg.StateDir, Group: cfg.SocketGroup,
		IDRange:   fmt.Sprintf("%#x to %#x", cfg.IDs.First, cfg.IDs.Last),
		IDOverlap: idmap.CheckHost(os.DirFS("/etc"), cfg.IDs.First, cfg.IDs.Last),
		UserNS: func(ctx context.Context, uid, gid uint32) (*os.File, error) {
			return idmap.ForCaller(ctx, uid, gid, 1000, 1000, nil)
		},
		Protected: append(mount.HostDoors(), cfg.StateDir, cfg.RunDir),
		Versions: []doctor.Version{
			{Name: "containerd", Have: v.Containerd, Fault: runtime.CheckContainerd(v.Containerd)},
			{Name: "crun", Have: v.Crun, Fault: v.CheckRuntime("crun"), Optional: cfg.Runtime.Default != "crun"},
			{Name: "runc", Have: v.Runc, Fault: v.CheckRuntime("runc"), Optional: cfg.Runtime.Default != "runc"},
		},
	}
}
