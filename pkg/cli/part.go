package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// withPart calls fn with the path of a program that is a part of creel, so it
// is looked for where creel is and where creel's parts are installed, and not
// in PATH. fn runs it, and says by ENOENT that it is not there.
func withPart(name string, fn func(path string) error) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	installed := filepath.Join(filepath.Dir(self), "..", "lib", "creel", "bin", name)
	for _, path := range []string{beside, installed} {
		if err := fn(path); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return fmt.Errorf("%s, which does this, is neither %s nor %s; install creel again", name, beside, installed)
}

// become executes a part of creel with the same line in place of creel.
func (a *app) become(name string) error {
	return withPart(name, func(path string) error {
		err := unix.Exec(path, append([]string{path}, a.line...), os.Environ())
		return fmt.Errorf("%s: %w", path, err)
	})
}
