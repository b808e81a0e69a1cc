package doctor

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Bad names the checks that are missing or dangerous.
func Bad(d *api.Doctor) (names []string) {
	for _, c := range d.Checks {
		if c.Status != OK && c.Status != Weaker {
			names = append(names, c.Name)
		}
	}
	return names
}

// Write prints the findings for people, in plain text. Leftovers that are nil
// were not looked for.
func Write(w io.Writer, d *api.Doctor) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i, c := range cells {
			cells[i] = plain(c)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row("", "CHECK", "DETAIL")
	for _, c := range d.Checks {
		for i, line := range strings.Split(c.Detail, "\n") {
			if i == 0 {
				row(c.Status, c.Name, line)
			} else {
				row("", "", line)
			}
		}
		if c.Cost != "" {
			row("", "", "cost: "+c.Cost)
		}
		if c.Fix != "" {
			row("", "", "fix:  "+c.Fix)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	switch {
	case d.Leftovers == nil:
		b.WriteString("\nleftovers: not looked for; creeld knows them when it runs\n")
	case len(d.Leftovers) == 0:
		b.WriteString("\nno leftovers\n")
	default:
		b.WriteString("\nleftovers:\n")
		for _, l := range d.Leftovers {
			b.WriteString("  " + plain(l) + "\n")
		}
	}
	if bad := Bad(d); bad != nil {
		b.WriteString("\nmissing or dangerous: " + plain(strings.Join(bad, ", ")) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// plain escapes what a terminal or the table would act on: names of users,
// files and processes are in the findings.
func plain(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r == '\t' || !strconv.IsPrint(r) }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
