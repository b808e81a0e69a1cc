"""What build tools, package managers and git do with files across
directories, in each directory given. Prints a line for each failure."""
import ctypes
import mmap
import os
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)


def exchange(a, b):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "exchange")


def put(path, text="x"):
    with open(path, "w") as f:
        f.write(text)


def unnamed():
    fd = os.open("a", os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.write(fd, b"x")
    follow = 0x400  # os.link means the link itself
    if libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, b"b/deep/unnamed", follow) != 0:
        raise OSError(ctypes.get_errno(), "linkat")
    os.close(fd)


def mapped():
    with open("b/mapped", "w+b") as f:
        f.truncate(4096)
        with mmap.mmap(f.fileno(), 4096) as m:
            m[:1] = b"y"
    os.rename("b/mapped", "a/mapped")
    assert open("a/mapped", "rb").read(1) == b"y"


def package():
    # npm and pip unpack beside the place and rename into it.
    os.makedirs("node_modules/.staging/pkg-1a2b/lib")
    put("node_modules/.staging/pkg-1a2b/lib/index.js")
    os.rename("node_modules/.staging/pkg-1a2b", "node_modules/pkg")
    os.link("node_modules/pkg/lib/index.js", "b/index.js")
    os.makedirs("c/old")
    os.rename("c/old", "node_modules/pkg/empty")
    os.rename("node_modules/pkg/empty", "c/old")


def git():
    def run(*args):
        p = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], capture_output=True, text=True)
        assert p.returncode == 0, (args, p.stderr)

    os.mkdir("repo")
    os.chdir("repo")
    run("init", "-q", ".")
    os.makedirs("src/deep")
    put("src/deep/f", "1\n" * 1000)
    run("add", "-A")
    run("commit", "-qm", "one")
    run("mv", "src/deep/f", "g")
    run("commit", "-qam", "two")
    run("gc", "-q")
    run("clone", "-q", "--local", ".", "../cloned")  # hard links
    run("worktree", "add", "-q", "../tree")
    run("stash", "list")
    os.chdir("..")


def one(top):
    work = os.path.join(top, "moving")
    os.makedirs(work)
    os.chdir(work)
    for d in ("a/deep", "b/deep"):
        os.makedirs(d)
    for f in ("a/f", "a/g", "a/deep/h"):
        put(f)
    steps = [
        ("rename", lambda: os.rename("a/f", "b/f")),
        ("rename over", lambda: os.replace("a/g", "b/f")),
        ("rename a directory", lambda: os.rename("a/deep", "b/moved")),
        ("rename upward", lambda: os.rename("b/moved/h", "top")),
        ("link", lambda: os.link("top", "b/deep/linked")),
        ("link upward", lambda: os.link("b/deep/linked", "up")),
        ("exchange", lambda: exchange("top", "b/moved")),
        ("unnamed file", unnamed),
        ("mapped file", mapped),
        ("package", package),
        ("git", git),
    ]
    for name, fn in steps:
        try:
            fn()
        except Exception as e:
            print("%s: %s: %r" % (top, name, e), flush=True)


for d in sys.argv[1:]:
    one(d)
print("end")
