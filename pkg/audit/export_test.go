package audit

// File is what tests put between the log and its disk.
type File = file

// OpenFile is what the log uses without them.
var OpenFile = openFile

// OnDisk has the log open its files by fn.
func (o Options) OnDisk(fn func(path string, fresh bool) (File, error)) Options {
	o.open = fn
	return o
}
