package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func secretCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "secret", Short: "Secrets: credentials that go out with requests and are never seen inside", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(secretSetCommand(a), secretListCommand(a), secretRemoveCommand(a))
	return cmd
}

// secretFlags are of a secret's binding.
type secretFlags struct {
	host, file, header, basic, query string
	bearer                           bool
	methods, paths                   []string
}

func secretSetCommand(a *app) *cobra.Command {
	var req api.SecretRequest
	var f secretFlags
	cmd := &cobra.Command{
		Use:   "set --host HOST[:PORT] [--method M,...] [--path P,...] [--bearer | --header NAME | --basic USER | --query NAME] NAME",
		Short: "Give a secret a value, from stdin or a file",
		Long: `Give a secret a value, from stdin or a file, new or in place of what it had.
Nobody reads it back. It goes out with requests by https to that host, with
those methods and paths, of sandboxes that were made with --secret NAME. Inside
there is a placeholder in its place, in the variable that --env names.

What an operator sets is the box's, for whom secrets in their [[caller]] names.`,
		Example: `  creel secret set --host api.example.com --path '/v1/**' --env EXAMPLE_API_KEY example < key
  creel secret set --host git.example.com --basic x-access-token forge < token
  creel run --secret example --allow 'api.example.com' -- agent`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, names []string) error {
			var err error
			if req.Rule, req.Place, err = f.bound(); err != nil {
				return err
			}
			if req.Value, err = a.secretValue(f.file); err != nil {
				return err
			}
			s, err := a.client().SetSecret(cmd.Context(), names[0], req)
			if err != nil || a.json {
				return orJSON(a, s, err)
			}
			_, err = fmt.Fprintln(a.Out, printable(s.Name))
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.host, "host", "", "the one host it is for, HOST[:PORT,...]")
	fl.StringSliceVar(&f.methods, "method", nil, "methods it is for (all)")
	fl.StringSliceVar(&f.paths, "path", nil, "paths it is for, such as /v1/** (all)")
	fl.BoolVar(&f.bearer, "bearer", false, "as Authorization: Bearer (the default)")
	fl.StringVar(&f.header, "header", "", "as this header")
	fl.StringVar(&f.basic, "basic", "", "as the password of this user")
	fl.StringVar(&f.query, "query", "", "as this parameter of the query")
	fl.StringVar(&req.Env, "env", "", "variable that has the placeholder in sandboxes")
	fl.StringSliceVar(&req.Agents, "agent", nil, "agents it is for, by name or pattern (all)")
	fl.StringVarP(&f.file, "file", "f", "", "read the value from a file")
	cmd.MarkFlagsMutuallyExclusive("bearer", "header", "basic", "query")
	return cmd
}

// bound is what a secret is bound to, as a rule, and its place.
func (f *secretFlags) bound() (rule string, place api.SecretPlace, err error) {
	if f.host == "" || strings.ContainsAny(f.host, " \t") {
		return "", place, errors.New("no host: name the one that it is for, with --host")
	}
	words := []string{f.host}
	for _, list := range [][]string{f.methods, f.paths} {
		if len(list) > 0 {
			words = append(words, strings.Join(list, ","))
		}
	}
	switch {
	case f.header != "":
		place = api.SecretPlace{Kind: api.PlaceHeader, Name: f.header}
	case f.basic != "":
		place = api.SecretPlace{Kind: api.PlaceBasic, Name: f.basic}
	case f.query != "":
		place = api.SecretPlace{Kind: api.PlaceQuery, Name: f.query}
	default:
		place = api.SecretPlace{Kind: api.PlaceBearer}
	}
	return strings.Join(words, " "), place, nil
}

// secretValue reads a value, and takes the end of its line off.
func (a *app) secretValue(file string) (string, error) {
	in := a.In
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	} else if a.In == nil || isTerminal(a.In) {
		return "", errors.New("no value: give it by stdin, or with --file")
	}
	const most = 64 << 10
	b, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", fmt.Errorf("the secret's value: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func secretListCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List secrets, without their values", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		list, err := a.client().Secrets(cmd.Context())
		if err != nil || a.json {
			return orJSON(a, list, err)
		}
		var t table
		t.header("NAME", "WHOSE", "FOR", "AS", "VARIABLE", "AGENTS", "SET", "USES", "LAST USED")
		for _, s := range list {
			whose, agents, last := "own", strings.Join(s.Agents, ", "), ""
			if s.Box {
				whose = "box"
			}
			if agents == "" {
				agents = "all"
			}
			if !s.LastUsed.IsZero() {
				last = ago(s.LastUsed, time.Now())
			}
			t.row(s.Name, whose, s.Rule, strings.TrimSpace(s.Place.Kind+" "+s.Place.Name), s.Env, agents, ago(s.Set, time.Now()), fmt.Sprint(s.Uses), last)
		}
		return a.writeTable(&t)
	}}
}

func secretRemoveCommand(a *app) *cobra.Command {
	return a.forEach("rm NAME...", "Forget secrets: no request goes out with them any more", func(ctx context.Context, name string) error {
		return a.client().RemoveSecret(ctx, name)
	})
}
