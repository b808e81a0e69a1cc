package api

import "fmt"

// Rule is one rule of a decision, with what was asked and what it allows.
type Rule struct {
	// Rule is where it is set: "ceiling.memory", "limits.max.memory",
	// "host.memory".
	Rule string `json:"rule"`
	// Field is the request's field that it is about, where it is one.
	Field   string `json:"field,omitempty"`
	Asked   string `json:"asked,omitempty"`
	Allowed string `json:"allowed"`
	OK      bool   `json:"ok"`
	// Fix is the smallest change that would turn a no into a yes.
	Fix string `json:"fix,omitempty"`
	// Total says that it bounds a sum, a rate or the box: what it refuses now
	// may be allowed later.
	Total bool `json:"total,omitempty"`
	// Whose is, of a total that refuses, whose sandboxes are summed.
	Whose string `json:"-"`
}

// Message says what a rule that does not hold is about.
func (r Rule) Message() string {
	if r.Whose != "" {
		return fmt.Sprintf("%s is %s, and %s sandboxes with this one would have more", r.Rule, r.Allowed, r.Whose)
	}
	return fmt.Sprintf("%s is %s, and %s was asked for", r.Rule, r.Allowed, r.Asked)
}

// Decision is what a spawn request would be answered now, rule by rule.
// Nothing is made or counted for it.
type Decision struct {
	Allowed bool `json:"allowed"`
	// Ceiling is the [[caller]] that holds for the caller; "operator" for one.
	Ceiling string `json:"ceiling"`
	Rules   []Rule `json:"rules"`
}
