// Package sametime lets a test hold that answers take the same time, so that
// how long one takes tells nobody what it does not say.
package sametime

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// Question is one of those whose answers are to take the same time.
type Question struct {
	Name string
	Ask  func() // and waits for the answer
}

// attempts are how often a difference has to show before it counts: what else
// the machine does makes one now and then, code that does more makes one always.
const attempts = 5

// Check fails the test if the medians of n answers to each question lie further
// apart than within, time and again. The questions are asked in turn, in random
// order, so that a machine that becomes slower does so for all. In the soak
// (CREEL_SOAK) it is twenty times n.
func Check(tb testing.TB, n int, within time.Duration, questions ...Question) {
	tb.Helper()
	n = Samples(n)
	for attempt := 1; ; attempt++ {
		took := make([][]time.Duration, len(questions))
		for range n {
			for _, i := range rand.Perm(len(questions)) { //nolint:gosec // nobody is to be surprised by it
				began := time.Now()
				questions[i].Ask()
				took[i] = append(took[i], time.Since(began))
			}
		}
		var medians []time.Duration
		for i, q := range questions {
			medians = append(medians, median(took[i]))
			tb.Logf("%-24s %v, the median of %d", q.Name, medians[i], n)
		}
		apart := slices.Max(medians) - slices.Min(medians)
		tb.Logf("%v apart, %v at most", apart, within)
		switch {
		case apart <= within:
			return
		case attempt == attempts:
			tb.Errorf("answers take %v more or less, depending on what is asked; %v at most, in %d attempts", apart, within, attempts)
			return
		}
	}
}

// Median is the median time that n calls take.
func Median(n int, call func()) time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		call()
		took[i] = time.Since(began)
	}
	return median(took)
}

// Samples is n, and twenty times as many in the soak.
func Samples(n int) int {
	if os.Getenv("CREEL_SOAK") != "" {
		return 20 * n
	}
	return n
}

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}
