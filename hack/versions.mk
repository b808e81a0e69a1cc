# Every version that creel pins, and nothing else. The Go modules are pinned in
# go.mod, the floors that creeld enforces at run time in its own code.

# containerd, its runc shim and ctr: a version of the Go module.
CONTAINERD_VERSION := v2.4.2

# runc: >= 1.5.2, because older ones are corrupted by the device BPF bug of
# kernels 6.17 to 7.1 and lack the fixes of CVE-2025-31133, -52565, -52881.
RUNC_VERSION := v1.5.2

# crun: upstream's tar ball as Debian ships it. apt checks it against Debian's
# signature; the digest makes sure that it is the one that was reviewed.
CRUN_VERSION := 1.21
CRUN_SUITE   := trixie
CRUN_SHA256  := 4bfb700e764a4804a4de3ecf07753f4c391005356d60356df65d80ae0914c486

# OpenClaw, which the plugin of integration/openclaw is tested in, and the Node
# that it runs on: packages of the npm registry.
OPENCLAW_VERSION := 2026.9.6
NODE_VERSION     := 24.21.0

# Linter, run from .cache/tools.
GOLANGCI_VERSION := v2.15.0

# The system that "make test-vm" boots, and the emulator that boots it where
# the machine's own is too old (qemu 7.2 of Debian 12 crashes this kernel).
VM_SUITE   := trixie
QEMU_FLOOR := 10
