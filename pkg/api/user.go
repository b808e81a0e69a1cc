package api

// UserRoot is Sandbox.User where a profile has the commands be root of their
// own user namespace. Everywhere else it is empty: they are the agent.
const UserRoot = "root"

// Capabilities are those that a profile may give to a root, by name, and
// their numbers (capabilities(7), linux/capability.h). Each acts only on what
// belongs to the sandbox's user namespace. None that reaches the kernel's
// tables (SYS_ADMIN, NET_ADMIN, MKNOD and so on) is here.
var Capabilities = map[string]uint{
	"CHOWN":        0,
	"DAC_OVERRIDE": 1,
	"FOWNER":       3,
	"SETGID":       6,
	"SETUID":       7,
}
