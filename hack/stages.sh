#!/bin/bash
# Runs make targets one after the other and prints how long each took.
#
#   stages.sh MAKE TARGET[!]...
#
# A target marked with "!" is needed by those after it: if it fails, they are
# not run. Any other failure is remembered, so that one run shows them all.
set -uo pipefail

make=$1
shift
summary=() failed=0 begin=$SECONDS

for stage in "$@"; do
	target=${stage%!}
	printf '\n==> %s\n' "$target"
	start=$SECONDS
	if "$make" --no-print-directory "$target" </dev/null; then
		result=ok
	else
		result=FAILED failed=1
	fi
	summary+=("$(printf '%-18s %6d s  %s' "$target" $((SECONDS - start)) "$result")")
	printf '<== %s\n' "${summary[-1]}"
	if [ "$result" = FAILED ] && [ "$stage" != "$target" ]; then
		summary+=("not run: what comes after $target")
		break
	fi
done

printf '\nstages\n'
printf '  %s\n' "${summary[@]}"
printf '  %-18s %6d s\n' total $((SECONDS - begin))
exit $failed
