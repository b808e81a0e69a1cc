// Package seccomp turns the allow-lists in profiles/seccomp/*.json into
// kernel filters, and says what a filter does to a given call.
//
// Load reads a profile, Profile.Compile makes the classic BPF program for one
// architecture, Filter.Bytes is what seccomp(2) takes. The program is a pure
// function of the profile: it can be compared, instruction by instruction,
// with what PTRACE_SECCOMP_GET_FILTER reads back from a process. That is why
// it is compiled here and not by libseccomp, whose output changes between
// versions; libseccomp checks our tables instead (CheckHost).
//
// # Format
//
// A profile is a JSON object; a field that is not named here is an error.
//
//	description  what it is for
//	extends      the profile this one changes (one level)
//	without      groups of that profile to leave out: {group, reason}
//	default      {action, errno} of a call that no rule matches; only in a
//	             profile that does not extend
//	groups       rules that belong together: {name, reason, rules}
//
// The reason is required: it is the comment. A rule is
//
//	syscalls  names, as in the kernel's tables
//	arch      the architectures (amd64, arm64) the rule is for. Without it the
//	          names must exist on all of them
//	when      conditions on arguments, all of which must hold. None: always
//	action    allow (when left out), errno or kill_process
//	errno     its name, with action errno
//
// The rules of one system call are tried in order of appearance, those of an
// extending profile before those it extends; the first whose conditions hold
// decides. A rule that can never be reached is an error. A condition is
//
//	arg     0 to 5
//	bits    32 when the kernel takes an int (the upper half of the register is
//	        then whatever the program left there, and is not looked at), else 64
//	mask    the bits to look at; all when left out
//	op      in or not_in
//	values  what the masked argument is compared with
//
// Masks and values are numbers (0x, 0o) or names from values.go, joined with
// "|"; "~(...)" is the complement.
//
// Calls of a foreign instruction set (i386 and x32 on amd64, arm on arm64)
// end the process in every profile: their numbers mean other calls.
package seccomp

//go:generate go run ./internal/gen
