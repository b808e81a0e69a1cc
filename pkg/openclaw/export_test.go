package openclaw

import "context"

// Decode reads a document as encoding/json would.
func Decode(text string) (any, error) {
	n, err := parse(text)
	if err != nil {
		return nil, err
	}
	return n.decode(), nil
}

// Of is a configuration that was read already.
func Of(root map[string]any, p Place) *Config { return &Config{Place: p, root: root} }

// Table has the rows of keys alone.
func (c *Config) Table() []Finding { return c.table() }

// Host is what runs on the host.
func (c *Config) Host() []Finding { return c.onHost() }

// Look is FindLeft in one directory.
func Look(ctx context.Context, dir string, uid uint32, most int) ([]Left, bool) {
	return FindLeft(ctx, []string{dir}, uid, most)
}

var ShellQuote = shellQuote
