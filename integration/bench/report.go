package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// measure is one line of the result. Baseline, Ratio and Met are absent
// where there is nothing to compare with, or no target.
type measure struct {
	Name        string   `json:"name"`
	Unit        string   `json:"unit"`
	N           int      `json:"n"`
	P50         float64  `json:"p50"`
	P95         float64  `json:"p95"`
	Baseline    string   `json:"baseline"`
	BaselineP50 *float64 `json:"baseline_p50"`
	Ratio       *float64 `json:"ratio"`
	Target      string   `json:"target"`
	Met         *bool    `json:"met"`
}

// target is what a measure must keep to; zero is no bound.
type target struct {
	most  float64 // of the median
	p95   float64 // likewise of the nearest rank of 95 %
	ratio float64 // of the median to the baseline's
	more  float64 // of the median than the baseline's
}

func (t target) text(unit string) string {
	var parts []string
	if t.most > 0 {
		parts = append(parts, fmt.Sprintf("<= %g %s", t.most, unit))
	}
	if t.p95 > 0 {
		parts = append(parts, fmt.Sprintf("p95 <= %g %s", t.p95, unit))
	}
	if t.ratio > 0 {
		parts = append(parts, fmt.Sprintf("ratio <= %g", t.ratio))
	}
	if t.more > 0 {
		parts = append(parts, fmt.Sprintf("<= %g %s more", t.more, unit))
	}
	return strings.Join(parts, " and ")
}

// report collects measures.
type report struct{ list []measure }

// add makes a measure of samples and, where there are any, of the baseline's.
func (r *report) add(name, unit string, samples []float64, baseline string, base []float64, t target) {
	m := measure{Name: name, Unit: unit, N: len(samples), P50: quantile(samples, 0.5), P95: quantile(samples, 0.95), Baseline: baseline, Target: t.text(unit)}
	met := (t.most == 0 || m.P50 <= t.most) && (t.p95 == 0 || m.P95 <= t.p95)
	if len(base) > 0 {
		p50 := quantile(base, 0.5)
		ratio := m.P50 / p50
		m.BaselineP50, m.Ratio = &p50, &ratio
		met = met && (t.ratio == 0 || ratio <= t.ratio) && (t.more == 0 || m.P50-p50 <= t.more)
	}
	if t != (target{}) {
		m.Met = &met
	}
	r.list = append(r.list, m)
}

// quantile is the nearest-rank quantile; the median of an even number of
// samples is the mean of the middle two.
func quantile(samples []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	switch n := len(s); {
	case n == 0:
		return 0
	case q == 0.5 && n%2 == 0:
		return (s[n/2-1] + s[n/2]) / 2
	default:
		return s[min(int(q*float64(n)), n-1)]
	}
}

// table prints the measures for people.
func (r *report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MEASURE\tN\tP50\tP95\tUNIT\tBASELINE\tRATIO\tTARGET\tMET\tBASELINE IS\t")
	for _, m := range r.list {
		base, ratio, met := "-", "-", "-"
		if m.BaselineP50 != nil {
			base, ratio = fmt.Sprintf("%.2f", *m.BaselineP50), fmt.Sprintf("%.3f", *m.Ratio)
		}
		if m.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*m.Met]
		}
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%s\t%s\t%s\t%s\t%s\t%s\t\n", m.Name, m.N, m.P50, m.P95, m.Unit, base, ratio, or(m.Target), met, or(m.Baseline))
	}
	return t.Flush()
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// write puts the measures into a file, whole or not at all.
func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r.list, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(text, '\n')); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
