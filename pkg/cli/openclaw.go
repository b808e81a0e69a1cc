package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/openclaw"
)

func openclawCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "openclaw", Short: "Check and write the configuration of OpenClaw for creel", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(openclawCheckCommand(a), openclawSetupCommand(a))
	return cmd
}

const configUsage = "the configuration; else OPENCLAW_CONFIG_PATH, or openclaw.json in OPENCLAW_STATE_DIR or ~/.openclaw"

func openclawCheckCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check [--config FILE]",
		Short: "Say whether OpenClaw's agents are in creel's sandboxes, and what is not",
		Long: `Say of each of OpenClaw's agents whether its sessions are in creel's sandboxes,
what creel does with each key that was meant for the Docker backend, what runs on
the host all the same, whether the gateway's user is root by another door, whether
creeld lets the plugin in, and which files Docker left to other owners.

Run it as the user that the gateway runs as. It changes nothing. The exit code is
1 when something is missing or dangerous.`,
		Example: "  creel openclaw check --json | jq '.[] | select(.level == \"danger\")'",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.openclawCheck(cmd.Context(), file)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", configUsage)
	return cmd
}

func openclawSetupCommand(a *app) *cobra.Command {
	var o setupOptions
	cmd := &cobra.Command{
		Use:   "setup [--config FILE] [--mode MODE] [--yes | --dry-run]",
		Short: "Make creel the sandbox backend in OpenClaw's configuration, after showing what changes",
		Long: `Make creel the sandbox backend of all of OpenClaw's agents, and switch its plugin
on. The change is shown, and made when you agree to it: on a terminal by an answer,
elsewhere by --yes. Comments and all other keys stay as they are.

What single agents say otherwise stays, too, and is named. The plugin itself is
installed by OpenClaw: openclaw plugins install.`,
		Args: args(0, 0),
		RunE: func(*cobra.Command, []string) error { return a.openclawSetup(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.file, "config", "", configUsage)
	f.StringVar(&o.mode, "mode", openclaw.Modes[0], strings.Join(openclaw.Modes, " or ")+", which leaves main sessions on the host")
	f.BoolVarP(&o.yes, "yes", "y", false, "write without asking")
	f.BoolVar(&o.dry, "dry-run", false, "only show the change")
	return cmd
}

// gateway is whom OpenClaw runs as: the owner of its configuration.
type gateway struct {
	uid         uint32
	name, group string
	home        string
}

func gatewayOf(uid uint32) gateway {
	id := strconv.FormatUint(uint64(uid), 10)
	g := gateway{uid: uid, name: id, group: id}
	if u, err := user.LookupId(id); err == nil {
		g.name, g.group, g.home = u.Username, u.Gid, u.HomeDir
		if grp, err := user.LookupGroupId(u.Gid); err == nil {
			g.group = grp.Name
		}
	}
	return g
}

// locate finds the configuration and its owner. Where that is somebody else,
// their home counts.
func locate(file string) (openclaw.Place, gateway, error) {
	home, err := os.UserHomeDir()
	if err != nil && file == "" {
		return openclaw.Place{}, gateway{}, fmt.Errorf("%w; name the file with --config", err)
	}
	p, err := openclaw.Locate(file, home, os.Getenv)
	if err != nil {
		return p, gateway{}, err
	}
	g := gatewayOf(uint32(os.Geteuid()))
	if st, err := os.Stat(p.Config); err == nil {
		if own, ok := st.Sys().(*syscall.Stat_t); ok && own.Uid != g.uid {
			g = gatewayOf(own.Uid)
			p, err = openclaw.Locate(file, g.home, os.Getenv)
			return p, g, err
		}
	}
	return p, g, nil
}

func (a *app) openclawCheck(ctx context.Context, file string) error {
	place, who, err := locate(file)
	if err != nil {
		return err
	}
	var found []openclaw.Finding
	c, err := openclaw.Read(place)
	if err == nil {
		found = c.Check()
	} else {
		found = append(found, unread(place, err))
		c = &openclaw.Config{Place: place}
	}
	found = append(found, a.otherDoors(who)...)
	found = append(found, a.askDaemon(ctx, c)...)
	left, all := openclaw.FindLeft(ctx, c.Workspaces(), who.uid, openclaw.MaxLooked)
	found = append(found, openclaw.ExplainLeft(left, all, who.name+":"+who.group)...)
	if a.json {
		err = a.writeJSON(found)
	} else {
		err = a.writeFindings(found)
	}
	if err == nil && openclaw.Bad(found) > 0 {
		return &exitError{code: exitFailed}
	}
	return err
}

// unread is why nothing can be said of the configuration.
func unread(p openclaw.Place, err error) openclaw.Finding {
	f := openclaw.Finding{Level: openclaw.Missing, About: "config", What: err.Error(), Fix: "openclaw doctor says what is wrong with it"}
	if errors.Is(err, fs.ErrNotExist) {
		f.What, f.Fix = p.Config+": there is none", "openclaw onboard makes one; --config FILE names another"
	}
	return f
}

// otherDoors says whether the gateway's user is root without creel.
func (a *app) otherDoors(who gateway) (out []openclaw.Finding) {
	group := ""
	if int(who.uid) != os.Geteuid() {
		out = append(out, openclaw.Finding{
			Level: openclaw.Note, About: "user", What: "the configuration is " + who.name + "'s: creeld answers you, and might answer that user otherwise",
			Fix: "sudo -u " + who.name + " creel openclaw check",
		})
		group = socketGroup(a.client().Socket())
	}
	levels := map[string]string{doctor.OK: openclaw.OK, doctor.Weaker: openclaw.Note, doctor.Missing: openclaw.Missing, doctor.Danger: openclaw.Danger}
	for _, c := range doctor.Caller(strconv.FormatUint(uint64(who.uid), 10), group) {
		what := c.Detail
		if _, name, ok := strings.Cut(c.Name, "caller."); ok {
			what = name + ": " + what
		}
		if c.Status == doctor.Danger {
			what = "already root by another door: " + what
		}
		if c.Cost != "" {
			what += "; " + c.Cost
		}
		out = append(out, openclaw.Finding{Level: levels[c.Status], About: "user", What: what, Fix: c.Fix})
	}
	return out
}

// socketGroup is the group that may use the socket, "" if that is none or not
// known.
func socketGroup(socket string) string {
	var st syscall.Stat_t
	if syscall.Stat(socket, &st) != nil || st.Gid == 0 {
		return ""
	}
	g, err := user.LookupGroupId(strconv.FormatUint(uint64(st.Gid), 10))
	if err != nil {
		return ""
	}
	return g.Name
}

// askDaemon says whether creeld is there, and lets in what the plugin asks of it.
func (a *app) askDaemon(ctx context.Context, c *openclaw.Config) []openclaw.Finding {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	v, err := a.client().Version(ctx)
	if err != nil {
		return []openclaw.Finding{refusal("", err)}
	}
	out := []openclaw.Finding{ofDaemon(openclaw.OK, "", "version %s (API %s) answers at %s", v.Creel, v.API, a.client().Socket())}
	d, err := a.client().Doctor(ctx, "", "")
	if err != nil {
		out = append(out, refusal("creel doctor: ", err))
	} else {
		out = append(out, ofDoctor(d)...)
	}
	for _, ref := range c.Images() {
		switch _, err := a.client().Image(ctx, ref); {
		case err == nil:
		case api.CodeOf(err) == api.CodeNotFound:
			out = append(out, ofDaemon(openclaw.Missing, "docker save "+ref+" | creel image import -", "there is no image %s, which an agent's sandbox is to have", ref))
		default:
			out = append(out, refusal("image "+ref+": ", err))
		}
	}
	return append(out, a.mountsByPath(ctx, c)...)
}

func ofDaemon(level, fix, format string, args ...any) openclaw.Finding {
	return openclaw.Finding{Level: level, About: "creeld", What: fmt.Sprintf(format, args...), Fix: fix}
}

// refusal is what creeld, or the way to it, said no with.
func refusal(doing string, err error) openclaw.Finding {
	if errors.Is(err, context.DeadlineExceeded) {
		return ofDaemon(openclaw.Missing, "creel doctor", "%snothing answers within %s", doing, doctorTimeout)
	}
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		return ofDaemon(openclaw.Missing, "", "%s%v", doing, err)
	}
	return ofDaemon(openclaw.Missing, e.Hint, "%s%s", doing, e.Message)
}

func ofDoctor(d *api.Doctor) (out []openclaw.Finding) {
	for _, c := range d.Checks {
		if c.Status == doctor.OK || c.Status == doctor.Weaker {
			continue
		}
		level := openclaw.Missing // and what a newer daemon may add
		if c.Status == doctor.Danger {
			level = openclaw.Danger
		}
		out = append(out, ofDaemon(level, c.Fix, "%s: %s", c.Name, c.Detail))
	}
	if out == nil {
		out = append(out, ofDaemon(openclaw.OK, "", "creel doctor: nothing of the host is missing or dangerous"))
	}
	return out
}

// mountsByPath asks whether creeld opens directories by path, which is how the
// plugin, being JavaScript, has to name them.
func (a *app) mountsByPath(ctx context.Context, c *openclaw.Config) []openclaw.Finding {
	dir, workspace := probeDir(c)
	if dir == "" {
		return []openclaw.Finding{ofDaemon(openclaw.Note, "", "whether it mounts directories by path is not known: neither a workspace nor %s is there", c.State)}
	}
	d, err := a.client().ExplainPaths(ctx, api.SpawnRequest{Mounts: []api.Mount{{Source: dir, Target: "/workspace"}}})
	if err != nil {
		return []openclaw.Finding{refusal("mounting "+dir+" by its path: ", err)}
	}
	var out []openclaw.Finding
	for _, r := range d.Rules {
		switch {
		case r.OK:
		case r.Field == "mounts[0].fd":
			return []openclaw.Finding{ofDaemon(openclaw.Missing, "in /etc/creel/creeld.toml: [mounts] paths = true; then systemctl restart creeld",
				"it opens no directory by its path, and the plugin cannot send descriptors: every sandbox would be refused")}
		case workspace:
			why := r.Message()
			if r.Asked == "" { // what is no rule of a ceiling's
				why = strings.TrimPrefix(r.Field+": "+r.Allowed, ": ")
			}
			out = append(out, ofDaemon(openclaw.Missing, r.Fix, "a sandbox with %s would be refused: %s", dir, why))
		}
	}
	return append([]openclaw.Finding{ofDaemon(openclaw.OK, "", "it opens directories by their paths, as you")}, out...)
}

// probeDir is a directory that sandboxes will have, else one that is there.
func probeDir(c *openclaw.Config) (dir string, workspace bool) {
	dirs := c.Workspaces()
	for i, d := range append(slices.Clip(dirs), c.State) {
		// creeld follows no links.
		path, err := filepath.EvalSymlinks(d)
		if st, serr := os.Stat(d); err == nil && serr == nil && st.IsDir() {
			return path, i < len(dirs)
		}
	}
	return "", false
}

// writeFindings writes what is to say, and the keys as a table of their own.
func (a *app) writeFindings(found []openclaw.Finding) error {
	var all, keys table
	all.header("", "ABOUT", "FINDING")
	keys.header("KEY", "OPENCLAW SAYS", "CREEL DOES")
	colors := map[string]color{openclaw.OK: green, openclaw.Note: yellow, openclaw.Missing: red, openclaw.Danger: red}
	for _, f := range found {
		if f.Key != "" {
			does := cell{f.Does, colors[f.Level]}
			if f.Fix != "" {
				does.text += "; " + f.Fix
			}
			keys.row(f.Key, f.Says, does)
			continue
		}
		all.row(cell{f.Level, colors[f.Level]}, f.About, f.What)
		if f.Fix != "" {
			all.row("", "", "fix:  "+f.Fix)
		}
	}
	if err := a.writeTable(&all); err != nil {
		return err
	}
	if len(keys.rows) > 1 {
		if _, err := fmt.Fprintln(a.Out); err != nil {
			return err
		}
		if err := a.writeTable(&keys); err != nil {
			return err
		}
	}
	verdict := "nothing is missing or dangerous"
	if n := openclaw.Bad(found); n > 0 {
		verdict = fmt.Sprintf("missing or dangerous: %d", n)
	}
	_, err := fmt.Fprintf(a.Out, "\n%s\n", verdict)
	return err
}

type setupOptions struct {
	file, mode string
	yes, dry   bool
}

// setupResult is what setup did, or would do.
type setupResult struct {
	Config  string `json:"config"`
	Changed bool   `json:"changed"` // the text that is wanted is another one
	Written bool   `json:"written"`
	Diff    string `json:"diff"`
}

func (a *app) openclawSetup(o setupOptions) error {
	switch {
	case !slices.Contains(openclaw.Modes, o.mode):
		return misuse("--mode %q is not %s", o.mode, strings.Join(openclaw.Modes, " or "))
	case o.yes && o.dry:
		return misuse("--yes writes, --dry-run does not: give one of them")
	case a.json && !o.yes && !o.dry:
		return misuse("--json asks nobody: it needs --yes or --dry-run")
	}
	c, after, err := planned(o)
	if err != nil {
		return err
	}
	res := setupResult{Config: c.Config, Changed: !bytes.Equal(c.Text, after), Diff: openclaw.Diff(c.Config, c.Text, after)}
	if err := a.agreed(o, res); err != nil {
		return err
	}
	if res.Changed && !o.dry {
		if err := openclaw.Replace(c.Config, c.Text, after); err != nil {
			return err
		}
		res.Written = true
	}
	if a.json {
		return a.writeJSON(res)
	}
	a.afterSetup(c.Place, res)
	return nil
}

// planned reads the configuration and gives what it is to be. What could not
// be written in the end is refused here.
func planned(o setupOptions) (*openclaw.Config, []byte, error) {
	place, who, err := locate(o.file)
	if err != nil {
		return nil, nil, err
	}
	byHand := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w. By hand: %s", place.Config, fmt.Errorf(format, args...), openclaw.Keys(o.mode))
	}
	c, err := openclaw.Read(place)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%s: there is none; openclaw onboard makes one, --config FILE names another", place.Config)
	case err != nil:
		return nil, nil, fmt.Errorf("%w; nothing is written", err)
	case place.ReadOnly:
		return nil, nil, byHand("the environment (OPENCLAW_CONFIG_READONLY, OPENCLAW_NIX_MODE) says that it is written elsewhere")
	case c.Symlink:
		return nil, nil, byHand("it is a symbolic link; name the file itself with --config")
	case int(c.UID) != os.Geteuid():
		return nil, nil, fmt.Errorf("%s: it is %s's; run this as that user", place.Config, who.name)
	}
	after, err := openclaw.Plan(c.Text, o.mode)
	if err != nil {
		return nil, nil, byHand("%w", err)
	}
	return c, after, nil
}

// agreed shows the change and returns when it may be made, or none is to be.
func (a *app) agreed(o setupOptions, res setupResult) error {
	if a.json || !res.Changed {
		return nil
	}
	if err := a.writeChange(res.Diff); err != nil || o.yes || o.dry {
		return err
	}
	if !isTerminal(a.In) {
		return errors.New("nothing is written: there is no terminal to ask on; --yes writes it, --dry-run only shows it")
	}
	if _, err := fmt.Fprintf(a.Err, "creel: write this to %s? [y/N] ", printable(res.Config)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer == "y" || answer == "yes" {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errors.New("nothing is written")
}

func (a *app) writeChange(diff string) error {
	show := colors(a.Out)
	for line := range strings.Lines(printableLines(diff)) {
		if c := map[byte]color{'+': green, '-': red}[line[0]]; show && c != plain {
			line = fmt.Sprintf("\x1b[%dm%s\x1b[0m\n", c, strings.TrimSuffix(line, "\n"))
		}
		if _, err := io.WriteString(a.Out, line); err != nil {
			return err
		}
	}
	return nil
}

// afterSetup says what became of it, and what single agents say otherwise.
func (a *app) afterSetup(p openclaw.Place, res setupResult) {
	switch {
	case !res.Changed:
		a.say("%s has all of it: nothing is to be changed", res.Config)
	case res.Written:
		a.say("written: %s", res.Config)
	default:
		a.say("not written: %s", res.Config)
		return
	}
	c, err := openclaw.Read(p)
	if err != nil {
		return // it was read, and written, a moment ago
	}
	for _, f := range c.Agents() {
		if f.Level != openclaw.OK {
			a.say("%s: %s", f.About, f.What)
		}
	}
	a.say("what is left to do: creel openclaw check")
}
