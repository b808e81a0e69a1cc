#!/bin/bash
# Installs what the tests with OpenClaw run, and the plugin that they try.
#
#   openclaw.sh deps NODE_VERSION OPENCLAW_VERSION   Node and openclaw, below .cache/openclaw
#   openclaw.sh plugin                               build and pack the plugin, as its users get it
#   openclaw.sh test                                 its unit tests
#
# Both come from the npm registry that this machine already uses. Node is a
# package there, too: openclaw needs a newer one than Debian has.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$PWD/.cache/openclaw
export PATH=$dir/node/node_modules/node/bin:$PATH

# install DIR PACKAGE FLAG...: one package, in a directory of its own (openclaw
# beside node in one project has npm remove node). Once more when it failed: a
# registry can be busy.
install() {
	local into=$1 package=$2
	shift 2
	rm -rf "$into"
	mkdir -p "$into"
	echo '{"private":true}' >"$into/package.json"
	for try in 1 2; do
		if (cd "$into" && npm install --no-audit --no-fund --no-update-notifier --loglevel=error "$@" "$package" </dev/null >npm.log 2>&1); then
			return
		fi
		echo "openclaw.sh: npm install $package failed ($try of 2)" >&2
	done
	cat "$into/npm.log" >&2
	return 1
}

deps() {
	local node=$1 openclaw=$2
	command -v npm >/dev/null || hack/debian.sh need npm
	if ! grep -qs "\"version\": \"$node\"" "$dir/node/node_modules/node/package.json"; then
		echo "installing node $node (half a minute, 190 MB)"
		install "$dir/node" "node@$node" # its own script fetches the program
		[ "$(node --version)" = "v$node" ] || { echo "openclaw.sh: node is $(node --version), not v$node" >&2; exit 1; }
	fi
	if ! grep -qs "\"version\": \"$openclaw\"" "$dir/inst/node_modules/openclaw/package.json"; then
		echo "installing openclaw $openclaw (a minute or two, 650 MB)"
		install "$dir/inst" "openclaw@$openclaw" --ignore-scripts
	fi
	# Its first start finishes the installation, which the tests' users could not.
	if [ -e "$dir/inst/node_modules/openclaw/.openclaw-lifecycle-pending" ]; then
		HOME=$dir OPENCLAW_STATE_DIR=$dir/state node "$dir/inst/node_modules/openclaw/openclaw.mjs" --version
		rm -rf "$dir/state"
	fi
}

plugin() {
	cd integration/openclaw
	# node_modules is made again only when the lock has changed.
	if ! cmp -s package-lock.json node_modules/.creel-lock; then
		echo "installing what the plugin is built with"
		npm ci --no-audit --no-fund --no-update-notifier --loglevel=error --ignore-scripts </dev/null ||
			npm ci --no-audit --no-fund --no-update-notifier --loglevel=error --ignore-scripts </dev/null
		cp package-lock.json node_modules/.creel-lock
	fi
	npm run --silent build
	mkdir -p "$dir/pack"
	rm -f "$dir"/pack/*.tgz
	npm pack --silent --pack-destination "$dir/pack" >/dev/null
	mv -f "$dir"/pack/*.tgz "$dir/creel-openclaw.tgz"
}

case "${1:-}" in
deps) [ $# = 3 ] || exit 2; deps "$2" "$3" ;;
plugin) plugin ;;
test) cd integration/openclaw && npm test --silent ;;
*) echo "usage: openclaw.sh deps NODE_VERSION OPENCLAW_VERSION | plugin | test" >&2; exit 2 ;;
esac
