// Package thread runs code on an operating system thread that is thrown away
// afterwards, for system calls that change the thread they run on: unshare(2),
// setns(2).
//
// Beware of Pdeathsig in a process that uses this package: the signal comes
// when the thread that forked the child ends, not the process. A child that is
// to have it must be started from a goroutine that is locked to its thread and
// waits for the child.
package thread

import (
	"os"
	"runtime"

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
