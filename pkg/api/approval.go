package api

import "time"

// Approval is a destination that a sandbox was refused, and that somebody may let.
type Approval struct {
	// ID is that of the sandbox, a dot and a number.
	ID      string `json:"id"`
	Sandbox string `json:"sandbox"`
	Name    string `json:"name"` // the sandbox's
	Agent   string `json:"agent"`
	Caller  Caller `json:"caller"`
	// To is what was refused, a name or "HOST:PORT", and Rule what would let it.
	To   string `json:"to"`
	Rule string `json:"rule"`
	// RefusedBy is who refused it, of those who did the first.
	RefusedBy string `json:"refused_by"`
	// Approver is who may let it: "caller" (or an operator) or "operator".
	Approver string        `json:"approver"`
	State    ApprovalState `json:"state"`
	// For is how far it was let, in state "allowed" and "used".
	For ApprovalScope `json:"for,omitempty"`
	// Times is how often it was tried, from First to Last, since creeld started.
	Times int       `json:"times"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Expires is when it is denied, unless somebody has answered.
	Expires time.Time `json:"expires"`
	// Decided is when somebody did, and DecidedBy that user.
	Decided   time.Time `json:"decided,omitzero"`
	DecidedBy *uint32   `json:"decided_by,omitempty"`
}

// ApprovalState is how far an Approval has come.
type ApprovalState string

// The states. What was denied or has expired can be allowed later.
const (
	ApprovalPending ApprovalState = "pending"
	ApprovalAllowed ApprovalState = "allowed"
	ApprovalUsed    ApprovalState = "used" // it was allowed once
	ApprovalDenied  ApprovalState = "denied"
	ApprovalExpired ApprovalState = "expired"
)

// ApprovalScope is how far something is let.
type ApprovalScope string

// The scopes.
const (
	// ForOnce is for the next connection or request that needs it.
	ForOnce ApprovalScope = "once"
	// ForSandbox is until the sandbox ends.
	ForSandbox ApprovalScope = "sandbox"
	// ForAgent is for the sandbox, and for all later ones of its agent.
	ForAgent ApprovalScope = "agent"
)

// ApprovalDecision answers one.
type ApprovalDecision struct {
	Allow bool `json:"allow"`
	// For is required to allow, and left out to deny.
	For ApprovalScope `json:"for,omitempty"`
}

// ForgetRequest takes back what was let for an agent.
type ForgetRequest struct {
	// Rules are as the agent's record has them; none is all.
	Rules []string `json:"rules,omitempty"`
}

// Valid is nil for one that can be carried out; else of class invalid_argument.
func (d ApprovalDecision) Valid() error {
	switch {
	case !d.Allow && d.For == "", d.Allow && (d.For == ForOnce || d.For == ForSandbox || d.For == ForAgent):
		return nil
	case !d.Allow:
		return Errorf(CodeInvalid, "for: %q; what is denied is for nothing", d.For)
	}
	return Errorf(CodeInvalid, "for: %q; it is once, sandbox or agent", d.For)
}
