# creel: build, test and install. "make help" lists the targets.
#
# Everything that is downloaded or cached lies in .cache/, every binary in bin/;
# "make clean" removes both. The first run needs a network for Debian packages
# and Go modules, a second one needs none.

include hack/versions.mk

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO     ?= go
prefix ?= /usr/local
CI     ?=

# An ordinary user in a checkout of someone else's has only their own caches.
ifeq ($(shell mkdir -p .cache 2>/dev/null && test -w .cache && echo yes),yes)
export GOCACHE    ?= $(CURDIR)/.cache/go-build
export GOMODCACHE ?= $(CURDIR)/.cache/go-mod
endif
export GOFLAGS ?= -buildvcs=false -modcacherw

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/creel-sandbox/creel/pkg/api.BuildVersion=$(VERSION)

# Debian packages, by what they are for.
DEPS_TOOLS := gcc libc6-dev make pkg-config libseccomp-dev libcap-dev python3 dpkg-dev ca-certificates git
DEPS_IMAGE := mmdebstrap uidmap
DEPS_TEST  := busybox-static curl
DEPS_VM    := qemu-system-x86 mmdebstrap e2fsprogs

STAMPS := .cache/stamps
IMAGE  := .cache/images/base.oci.tar

.PHONY: FORCE
FORCE:

##@ Build

.PHONY: deps deps-image deps-test deps-vm
deps: preflight ## Install the Debian packages that building needs (as root, only what is missing)
	@hack/debian.sh need $(DEPS_TOOLS)

deps-image:
	@hack/debian.sh need $(DEPS_IMAGE)

deps-test:
	@hack/debian.sh need $(DEPS_TEST)

deps-vm:
	@hack/debian.sh need $(DEPS_VM)

.PHONY: preflight
preflight:
	@command -v $(GO) >/dev/null || { echo "make: no Go in PATH: install the version that go.mod names" >&2; exit 1; }
	@command -v apt-get >/dev/null || { echo "make: not a Debian system: apt-get not found" >&2; exit 1; }

# A stamp is newer than the binary exactly when the pinned version has changed.
$(STAMPS)/%:
	@mkdir -p $(@D) bin
	@touch $@

CONTAINERD_BINS := bin/containerd bin/containerd-shim-runc-v2 bin/ctr

.PHONY: tools
tools: $(CONTAINERD_BINS) bin/crun bin/runc ## Build the pinned containerd, its shim, crun and runc into bin/

# Static, so that what is built here runs on any Debian. The drivers left out
# need libraries or kernel parts that creel does not use.
$(CONTAINERD_BINS) &: $(STAMPS)/containerd-$(CONTAINERD_VERSION) | deps
	@echo "building containerd $(CONTAINERD_VERSION) (some minutes the first time)"
	@mkdir -p bin
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/.cache/gobin $(GO) install -trimpath -tags no_btrfs,no_devmapper,no_zfs \
		-ldflags '-s -w -X github.com/containerd/containerd/v2/version.Version=$(CONTAINERD_VERSION)' \
		$(patsubst bin/%,github.com/containerd/containerd/v2/cmd/%@$(CONTAINERD_VERSION),$(CONTAINERD_BINS))
	@for b in $(CONTAINERD_BINS); do mv -f .cache/gobin/$${b#bin/} $$b; touch $$b; done

bin/runc: $(STAMPS)/runc-$(RUNC_VERSION) | deps
	@echo "building runc $(RUNC_VERSION)"
	@mkdir -p bin
	@CGO_ENABLED=1 GOBIN=$(CURDIR)/.cache/gobin $(GO) install -trimpath -tags seccomp \
		-ldflags '-s -w -X main.version=$(RUNC_VERSION:v%=%)' github.com/opencontainers/runc@$(RUNC_VERSION)
	@mv -f .cache/gobin/runc $@
	@touch $@

bin/crun: $(STAMPS)/crun-$(CRUN_VERSION)-$(CRUN_SHA256) | deps
	@echo "building crun $(CRUN_VERSION)"
	@mkdir -p bin
	@hack/crun.sh $(CRUN_SUITE) $(CRUN_VERSION) $(CRUN_SHA256) $(CURDIR)/$@

# Our own programs. creeld checks its seccomp profiles with libseccomp when it
# is there; the others are static, creel-init because it runs in any image.
OURS := $(patsubst cmd/%,bin/%,$(wildcard cmd/creeld cmd/creel cmd/creel-mcp cmd/creel-pull cmd/creel-init cmd/creel-egress))

.PHONY: build
build: $(OURS) ## Build creeld, creel and their parts into bin/

bin/creeld: FORCE
	@if pkg-config --exists libseccomp 2>/dev/null; \
	then export CGO_ENABLED=1 tags=seccomp; else export CGO_ENABLED=0 tags=; fi; \
	mkdir -p bin; $(GO) build -trimpath -tags "$$tags" -ldflags '$(LDFLAGS)' -o $@ ./cmd/creeld

bin/creel bin/creel-mcp bin/creel-pull bin/creel-init bin/creel-egress: FORCE
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

# creeld as the crash tests want it: any step can be made to fail, or to kill
# the daemon, from outside. Never installed.
.PHONY: build-failpoint
build-failpoint: bin/creeld-failpoint

bin/creeld-failpoint: FORCE
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -tags failpoint -ldflags '$(LDFLAGS)' -o $@ ./cmd/creeld

.PHONY: cross
cross: ## Check that everything builds for arm64
	@CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -trimpath ./...

.PHONY: image
image: $(IMAGE) ## Make the base agent image with "creel image build"

$(IMAGE): $(filter-out %_test.go,$(wildcard pkg/imagebuild/*.go)) | deps-image bin/creel
	@echo "building the base agent image (two to four minutes the first time)"
	@mkdir -p $(@D)
	@bin/creel image build --output $@.new base
	@mv -f $@.new $@

# An image with package managers, for the tests of the profile "build". apt,
# npm and cargo are in no image that creel makes by itself.
PACKAGES := .cache/images/packages.oci.tar

.PHONY: image-packages
image-packages: $(PACKAGES) ## Make the image with apt, npm and cargo that a test needs

$(PACKAGES): $(IMAGE) | bin/creel
	@echo "building an image with package managers (some minutes the first time, 1 GB)"
	@bin/creel image build --output $@.new --ref packages --package apt --package npm --package cargo base
	@mv -f $@.new $@

# OpenClaw and its Node, for the tests alone.
OPENCLAW := .cache/openclaw/inst/node_modules/openclaw/openclaw.mjs

.PHONY: deps-openclaw
deps-openclaw: $(OPENCLAW) ## Install the pinned openclaw and Node, by npm, into .cache/openclaw

$(OPENCLAW): $(STAMPS)/openclaw-$(OPENCLAW_VERSION) $(STAMPS)/node-$(NODE_VERSION)
	@hack/openclaw.sh deps $(NODE_VERSION) $(OPENCLAW_VERSION)
	@touch $@

# The plugin as its users install it.
PLUGIN := .cache/openclaw/creel-openclaw.tgz

.PHONY: plugin
plugin: $(PLUGIN) ## Build and pack the plugin for OpenClaw

$(PLUGIN): $(OPENCLAW) $(shell find integration/openclaw -not -path '*/node_modules*' -not -path '*/dist*' -not -path '*/e2e*' -type f)
	@echo "building the plugin for OpenClaw"
	@hack/openclaw.sh plugin

##@ Test

# What the machine of "make test" promises: a test that needs one of these and
# does not find it fails instead of skipping.
PROMISED := root,idmap,bin,base-image,packages-image,landlock,curl,go,python3,users,terminal,openclaw

UNIT = $$($(GO) list ./... | grep -v /creel/integration)

.PHONY: test
test: ## All that CI runs, in order, with the time of each stage (as root)
	@test "$$(id -u)" = 0 || { echo "make test: must run as root; make test-unit does not" >&2; exit 1; }
	@CREEL_TEST_REQUIRE=$${CREEL_TEST_REQUIRE-$(PROMISED)} hack/stages.sh $(MAKE) \
		deps! deps-test! tools! build! cross lint image! image-packages! plugin test-bare test-unit test-race test-fuzz-seeds test-integration test-caller test-openclaw test-vm

.PHONY: test-unit
test-unit: ## Unit and golden tests, no cgo; any user
	@CGO_ENABLED=0 $(GO) test $(UNIT)

.PHONY: test-bare
test-bare: ## "go build && go test" as an ordinary user in a fresh clone (as root)
	@hack/bare.sh

.PHONY: test-race
test-race: ## The same tests under the race detector
	@CGO_ENABLED=1 $(GO) test -race $(UNIT)

.PHONY: test-fuzz-seeds
test-fuzz-seeds: ## Fuzz targets with their seeds only
	@CGO_ENABLED=0 $(GO) test -run '^Fuzz' $(UNIT)

FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME (60s)
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: test-integration
test-integration: deps-test tools build build-failpoint image image-packages ## Tests against a real containerd; T=Name runs one (as root)
	@CGO_ENABLED=0 $(GO) test -count=1 -p 1 -timeout 30m $(if $(T),-v -run '$(T)') $$($(GO) list ./integration/... | grep -vE '/hostile-caller|/openclaw/')

.PHONY: test-openclaw
test-openclaw: deps-test tools build build-failpoint image plugin ## The plugin in the real openclaw, with a real daemon; T=Name runs one (as root)
	@hack/openclaw.sh test
	@CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m $(if $(T),-v -run '$(T)') ./integration/openclaw/e2e

.PHONY: test-caller
test-caller: deps-test tools build build-failpoint ## An ordinary user with the socket tries to become more (as root)
	@CGO_ENABLED=0 $(GO) test -count=1 -timeout 15m ./integration/hostile-caller $(if $(UPDATE),-update)

.PHONY: test-bypass
test-bypass: build tools ## Ways round a network's policy, in an internet of the test's own; part of test-integration (as root)
	@CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 15m ./integration/bypass

.PHONY: test-vm
test-vm: tools build build-failpoint image deps-vm ## The same on the target platform: cgroup v2 and systemd in a virtual machine
	@$(GO) run ./integration/vm/run -suite $(VM_SUITE) -qemu-floor $(QEMU_FLOOR) $(if $(T),-only ./integration -run '$(T)')

# Beside the integration tests, the packages with tests that have a long form.
SOAK = ./pkg/launcher ./pkg/peer ./pkg/runtime ./pkg/volume
.PHONY: soak
soak: tools build build-failpoint image plugin ## Long forms of the tests, hours (as root)
	@CREEL_SOAK=1 CGO_ENABLED=0 $(GO) test -count=1 -p 1 -timeout 6h $(SOAK) ./integration/...
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: tools build image ## Measure, print and write build/bench.json (as root, on a quiet machine)
	@mkdir -p build
	@$(GO) run ./integration/bench -output build/bench.json

.PHONY: lint
lint: .cache/tools/golangci-lint-$(GOLANGCI_VERSION) ## go vet for both architectures, golangci-lint, size limits
	@bad=0; \
	hack/limits.sh || bad=1; \
	CGO_ENABLED=0 $(GO) vet ./... || bad=1; \
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./... || bad=1; \
	GOLANGCI_LINT_CACHE=$(CURDIR)/.cache/golangci-lint $< run ./... || bad=1; \
	exit $$bad

.PHONY: fmt
fmt: .cache/tools/golangci-lint-$(GOLANGCI_VERSION) ## Format the sources
	@$< fmt ./...

.cache/tools/golangci-lint-$(GOLANGCI_VERSION):
	@echo "building golangci-lint $(GOLANGCI_VERSION) (some minutes the first time)"
	@mkdir -p $(@D)
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/.cache/gobin $(GO) install -trimpath \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv -f .cache/gobin/golangci-lint $@

##@ Other

.PHONY: demo
demo: tools build image ## An agent's job in a sandbox, start to end, as an ordinary user (as root)
	@CGO_ENABLED=0 $(GO) run ./integration/demo

.PHONY: install
install: ## Install below prefix (/usr/local), DESTDIR first: binaries, units, completions
	@hack/install.sh '$(DESTDIR)' '$(prefix)'

.PHONY: clean
clean: ## Remove all that was built, downloaded and cached
	@rm -rf bin build .cache integration/openclaw/node_modules integration/openclaw/dist

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
