"""Attacks on the protected names of a workspace from inside, one line of JSON for
each that succeeded, and one with their number at the end.

Run as the agent: protect.py TOP NAME..., where a NAME that ends in a slash is a
directory. Each call has to fail; with which errno is the kernel's.
"""
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import socket
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
EXCHANGE, NOREPLACE, AT_FDCWD = 2, 1, -100
top, names = sys.argv[1], sys.argv[2:]
os.chdir(top)
tried = 0


def must(name, what, fn):
    global tried
    tried += 1
    try:
        got = fn()
    except (OSError, ValueError):
        return
    print(json.dumps({"name": "%s: %s" % (name, what), "got": repr(got)}), flush=True)


def c(fn, *args):
    """A function of the C library; raises OSError."""
    args = [a.encode() if isinstance(a, str) else a for a in args]
    if getattr(libc, fn)(*args) == -1:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def sys_(nr, *args):
    args = [a.encode() if isinstance(a, str) else ctypes.c_long(a) for a in args]
    if libc.syscall(ctypes.c_long(nr), *args) == -1:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def exchange(a, b):
    sys_(316 if X86 else 276, AT_FDCWD, a, AT_FDCWD, b, EXCHANGE)


def write(path, flags=0):
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.write(fd, b"the agent's")
    finally:
        os.close(fd)
    return path


def mapped(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        m = mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        m[0] = 64
    finally:
        os.close(fd)


def by_fd(path):
    """What can be read, opened again to be written."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return write("/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)


def unnamed(path):
    """A file without a name, linked to where one is to be."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o755)
    try:
        os.link("/proc/self/fd/%d" % fd, path, follow_symlinks=True)
    finally:
        os.close(fd)


def inode_flags(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x40086602, b"\x20\0\0\0\0\0\0\0")  # FS_IOC_SETFLAGS, append only
    finally:
        os.close(fd)


def elsewhere(path):
    """From in the directory itself, by a path that is not its own."""
    os.chdir(os.path.dirname(path) or ".")
    try:
        os.rename(os.path.basename(path), top + "/.other")
    finally:
        os.chdir(top)


def process(path):
    """By another process's root and working directory."""
    p = subprocess.Popen(["/bin/sleep", "10"])
    try:
        try:
            return write("/proc/%d/cwd/%s" % (p.pid, path), os.O_CREAT)
        except OSError:
            return write("/proc/%d/root%s/%s" % (p.pid, top, path), os.O_CREAT)
    finally:
        p.kill()
        p.wait()


def listening(path):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.bind(path)
    finally:
        s.close()


os.mkdir(".mine")
open(".mine/file", "w").close()

for name in names:
    directory, path = name.endswith("/"), name.rstrip("/")
    for attack in (
        ("unlink", lambda: os.unlink(path)),
        ("rmdir", lambda: os.rmdir(path)),
        ("rename", lambda: os.rename(path, ".other")),
        ("rename beside it", lambda: os.rename(path, path + ".other")),
        ("rename from within", lambda: elsewhere(path)),
        ("rename over it, a file", lambda: os.rename(".mine/file", path)),
        ("rename over it, a directory", lambda: os.rename(".mine", path)),
        ("exchange with a file", lambda: exchange(".mine/file", path)),
        ("exchange with a directory", lambda: exchange(".mine", path)),
        ("mkdir", lambda: os.mkdir(path)),
        ("symlink", lambda: os.symlink(".mine", path)),
        ("link to it", lambda: os.link(".mine/file", path)),
        ("another name", lambda: os.link(path, ".mine/name")),
        ("mkfifo", lambda: os.mkfifo(path)),
        ("bind a socket", lambda: listening(path)),
        ("a file without a name", lambda: unnamed(path)),
        ("open to write", lambda: write(path)),
        ("create", lambda: write(path, os.O_CREAT)),
        ("create, exclusive", lambda: write(path, os.O_CREAT | os.O_EXCL)),
        ("truncate while opening", lambda: write(path, os.O_TRUNC)),
        ("append", lambda: write(path, os.O_APPEND)),
        ("truncate", lambda: os.truncate(path, 0)),
        ("chmod", lambda: os.chmod(path, 0o777)),
        ("chown", lambda: os.chown(path, 1000, 1000)),
        ("utime", lambda: os.utime(path, (1, 1))),
        ("setxattr", lambda: os.setxattr(path, "user.x", b"x")),
        ("inode flags", lambda: inode_flags(path)),
        ("opened again", lambda: by_fd(path)),
        ("by another process", lambda: process(path)),
        ("by /proc/self/root", lambda: write("/proc/self/root%s/%s" % (top, path), os.O_CREAT)),
        ("by dots", lambda: write("src/../" + path, os.O_CREAT)),
        ("bind mount over it", lambda: c("mount", ".mine", path, None, 4096, None)),
        ("tmpfs over it", lambda: c("mount", "tmpfs", path, "tmpfs", 0, None)),
        ("remount", lambda: c("mount", None, path, None, 4096 | 32, None)),
        ("umount", lambda: c("umount2", path, 2)),
        ("open_tree", lambda: sys_(428, AT_FDCWD, path, 1)),
        ("mount_setattr", lambda: sys_(442, AT_FDCWD, path, 0, 0, 32)),
    ):
        must(name, *attack)
    if directory:
        for attack in (
            ("create in it", lambda: write(path + "/new", os.O_CREAT)),
            ("mkdir in it", lambda: os.mkdir(path + "/new")),
            ("symlink in it", lambda: os.symlink("/bin/sh", path + "/new")),
            ("link into it", lambda: os.link(".mine/file", path + "/new")),
            ("rename into it", lambda: os.rename(".mine/file", path + "/new")),
            ("unnamed in it", lambda: os.close(os.open(path, os.O_TMPFILE | os.O_RDWR))),
        ):
            must(name, *attack)
        for dir_, _, files in os.walk(path):
            for f in files:
                f = os.path.join(dir_, f)
                for attack in (
                    ("open to write", lambda: write(f)),
                    ("unlink", lambda: os.unlink(f)),
                    ("rename", lambda: os.rename(f, ".other")),
                    ("another name", lambda: os.link(f, ".mine/name")),
                    ("map", lambda: mapped(f)),
                    ("chmod", lambda: os.chmod(f, 0o777)),
                ):
                    must(f, *attack)
    else:
        must(name, "map", lambda: mapped(path))
    # What leads to it must lead to it for ever.
    above = os.path.dirname(path)
    while above:
        for attack in (
            ("rename", lambda: os.rename(above, ".other")),
            ("rename beside it", lambda: os.rename(above, above + ".other")),
            ("rename over it", lambda: os.rename(".mine", above)),
            ("exchange", lambda: exchange(".mine", above)),
            ("rmdir", lambda: os.rmdir(above)),
            ("remove all", lambda: subprocess.run(["rm", "-rf", above], check=True, stderr=subprocess.DEVNULL) if above != ".git" else os.rmdir(above)),
            ("another name", lambda: os.link(above, ".mine/name")),
            ("symlink", lambda: os.symlink(".mine", above)),
        ):
            try:
                must(above, *attack)
            except subprocess.CalledProcessError:
                pass
        above = os.path.dirname(above)

# The workspace itself, and what is above it.
for what, fn in (
    ("rename", lambda: os.rename(top, "/tmp/other")),
    ("exchange", lambda: exchange(top, "/tmp")),
    ("rmdir", lambda: os.rmdir(top)),
    ("umount", lambda: c("umount2", top, 2)),
    ("remount", lambda: c("mount", None, top, None, 4096 | 32, None)),
    ("symlink", lambda: os.symlink("/tmp", top)),
    ("a namespace of its own", lambda: sys_(272 if X86 else 97, 0x10020000)),
):
    must(top, what, fn)

# A reading descriptor from before any of this would not help either: a mount is
# asked when a file is opened, and nothing in the sandbox was opened before it.

# What git does must go on, and the rest of the workspace is the agent's.
for name in (".git/index", ".git/HEAD", ".git/refs/heads/main", ".git/logs/HEAD", ".git/COMMIT_EDITMSG", ".git/packed-refs", ".git/info/exclude", ".git/MERGE_HEAD"):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    fd = os.open(name + ".lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"agent")
    os.close(fd)
    os.rename(name + ".lock", name)
os.makedirs(".git/objects/ab", exist_ok=True)
open(".git/objects/tmp_obj", "w").write("x")
os.link(".git/objects/tmp_obj", ".git/objects/ab/cd")
os.unlink(".git/objects/tmp_obj")
os.makedirs(".git/rebase-merge")
open("src/new.c", "w").write("int x;\n")
os.rename("src/new.c", "src/renamed.c")
os.makedirs("src/.vscode")
os.unlink(".mine/file")
os.rmdir(".mine")
print(json.dumps({"name": "end", "got": tried}))
