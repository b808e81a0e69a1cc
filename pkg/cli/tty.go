package cli

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func fileIsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// terminalSize is the size of the terminal behind a stream, 0 when there is none.
func terminalSize(stream any) (cols, rows uint16) {
	f, ok := stream.(*os.File)
	if !ok {
		return 0, 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return ws.Col, ws.Row
}

// usualSize is what a terminal gets when creel has none itself.
const usualCols, usualRows = 80, 24

// sizeOr is the size of the terminal behind a stream, else the usual one.
func sizeOr(stream any) (cols, rows uint16) {
	if cols, rows = terminalSize(stream); cols == 0 || rows == 0 {
		return usualCols, usualRows
	}
	return cols, rows
}

// rawMode passes every key on, Ctrl-C included. The caller runs restore on
// every way out; it may run it more than once. Without a terminal it does
// nothing.
func rawMode(stream any) (restore func(), err error) {
	f, ok := stream.(*os.File)
	if !ok || !fileIsTerminal(f) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(int(f.Fd()), old) }, nil
}

// watchSize calls fn with the terminal's size now and at each change, until
// stop is called.
func watchSize(stream any, fn func(cols, rows uint16)) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGWINCH)
	done := make(chan struct{})
	c <- unix.SIGWINCH // now
	go func() {
		for {
			select {
			case <-c:
				if cols, rows := terminalSize(stream); cols > 0 && rows > 0 {
					fn(cols, rows)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}
