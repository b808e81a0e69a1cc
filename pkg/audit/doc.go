// Package audit is a log that can be shown to others: JSON lines, each with
// the hash of the one before, and the end of each commit signed.
//
// Open gives the log. Commit waits until a record is on disk and signed, and
// is for what must not happen unrecorded; Queue returns at once and the record
// is committed within [Delay]; Keep is for what happens whatever the log does
// (a stop, an outcome), and may use the reserve. Verify needs the files and
// the public key, and no daemon.
//
// When a write or an fsync fails, the log is down: Commit and Queue refuse
// with a *DownError, Keep's records wait in memory, and the log tries to go on
// by itself. After a failed fsync the kernel may have dropped the very pages
// and call the next fsync good (https://lwn.net/Articles/752063/), so nothing
// that was not acknowledged is believed: the file's end is written again from
// memory and cut to what was acknowledged.
//
// Beware: a chain says nothing of what comes after its last signed head. Who
// can write the files can cut the log at an older head, and that shows only
// against an anchor (a head kept elsewhere; creeld sends each to the journal).
// See docs/audit.md.
package audit
