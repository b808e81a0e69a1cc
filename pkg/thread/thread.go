// Package thread runs code on an operating system thread that is thrown away
// afterwards, for system calls that change the thread they run on: unshare(2),
// setns(2), setfsuid(2).
//
// Beware of Pdeathsig in a process that uses this package: the signal comes
// when the thread that forked the child ends, not the process. A child that is
// to have it must be started from a goroutine that is locked to its thread and
// waits for the child.
package thread

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Do calls fn on a thread of its own and destroys the thread when fn returns,
// so that no other goroutine can wake up in fn's namespaces. fn must not start
// goroutines that need to be there.
func Do(fn func() error) error {
	errc := make(chan error, 1)
	go run(fn, errc)
	return <-errc
}

func run(fn func() error, errc chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread cannot be destroyed: the runtime would park it for
		// ever in fn's namespaces, where /proc/PID shows it and keeps them
		// alive. Hold it while fn runs on another, then give it back.
		defer runtime.UnlockOSThread()
		inner := make(chan error, 1)
		go run(fn, inner)
		errc <- <-inner
		return
	}
	errc <- fn() // never unlocked: the thread ends with this goroutine
}

// As calls fn on a thread that has other ids where the file system looks, and no
// capability at all. The thread's other ids stay the process's: with them, whoever
// has these ids could send it signals (kill(2)) and so end the process.
func As(uid, gid uint32, groups []uint32, fn func() error) error {
	return Do(func() error {
		// Raw calls, which are this thread's alone. setfsuid(2) and setfsgid(2)
		// answer the id before; a second call tells whether the first did it.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
			return fmt.Errorf("setgroups: %w", errno)
		}
		for _, set := range []struct{ nr, id uintptr }{{unix.SYS_SETFSGID, uintptr(gid)}, {unix.SYS_SETFSUID, uintptr(uid)}} {
			_, _, _ = unix.RawSyscall(set.nr, set.id, 0, 0)
			if now, _, _ := unix.RawSyscall(set.nr, ^uintptr(0), 0, 0); now != set.id {
				return errors.New("the thread does not take the other identity")
			}
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none, now [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
		if err := unix.Capget(&header, &now[0]); err != nil || now != none {
			return fmt.Errorf("capabilities are left (%v): %w", now, errors.Join(err))
		}
		return fn()
	})
}
