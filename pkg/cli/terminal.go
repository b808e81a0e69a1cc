package cli

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

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

// progress shows on standard error that something is going on: on a terminal
// one line that moves, else a plain line now and then. Nothing is shown of
// what takes less than a second.
type progress struct {
	out      io.Writer
	terminal bool

	mu    sync.Mutex
	text  string
	shown bool
	last  time.Time // of the last plain line

	stop chan struct{}
	done sync.WaitGroup
}

func (a *app) progress(text string) *progress {
	p := &progress{out: a.Err, terminal: isTerminal(a.Err), text: text, stop: make(chan struct{})}
	p.done.Go(func() { p.loop(time.Now()) })
	return p
}

// plainEvery is how often a plain line says that it still goes on.
const plainEvery = 15 * time.Second

func (p *progress) loop(started time.Time) {
	first := time.NewTimer(time.Second)
	defer first.Stop()
	select {
	case <-p.stop:
		return
	case <-first.C:
	}
	every := plainEvery
	if p.terminal {
		every = 120 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for frame := 0; ; frame++ {
		p.show(frame, time.Since(started))
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
	}
}

func (p *progress) show(frame int, took time.Duration) {
	const spinner = `|/-\`
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown = true
	if !p.terminal && time.Since(p.last) < plainEvery {
		return // a step has just said more
	}
	p.last = time.Now()
	if p.terminal {
		line := []rune(fmt.Sprintf("%c %s (%d s)", spinner[frame%len(spinner)], p.text, int(took.Seconds())))
		if cols, _ := sizeOr(p.out); len(line) >= int(cols) { // a line that wraps is not taken away
			line = line[:cols-1]
		}
		_, _ = fmt.Fprintf(p.out, "\r\x1b[K%s", string(line))
		return
	}
	_, _ = fmt.Fprintf(p.out, "creel: %s (%d s)\n", p.text, int(took.Seconds()))
}

// step changes the text; without a terminal each step is a line.
func (p *progress) step(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = printable(text)
	if !p.terminal {
		p.last = time.Now()
		_, _ = fmt.Fprintf(p.out, "creel: %s\n", p.text)
	}
}

// set changes the text, without a line of its own.
func (p *progress) set(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
}

// end takes the line away.
func (p *progress) end() {
	close(p.stop)
	p.done.Wait()
	if p.terminal && p.shown {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
	}
}
