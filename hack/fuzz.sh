#!/bin/bash
# Fuzzes every target of the module, one after the other.
#
#   fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

git grep -lE '^func Fuzz' -- '*_test.go' | while IFS= read -r file; do
	sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$file" | while IFS= read -r target; do
		echo "fuzzing $(dirname "$file") $target"
		CGO_ENABLED=0 go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$(dirname "$file")" </dev/null
	done
done
