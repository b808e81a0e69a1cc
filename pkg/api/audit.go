package api

// AuditHead is the audit log's last signed head: an anchor, to be kept where
// who can write the log cannot.
type AuditHead struct {
	// Seq is the record's number.
	Seq uint64 `json:"seq"`
	// Line is the record as it is in the log, without its newline.
	Line string `json:"line"`
}
