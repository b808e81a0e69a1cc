package idmap_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/kerneltest"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestNewBounds(t *testing.T) {
	tests := []struct {
		name        string
		first, last uint32
		inUse       []uint32
		free        int
		wantErr     string
	}{
		{name: "default", first: idmap.DefaultFirst, last: idmap.DefaultLast, free: 2046},
		{name: "one range", first: 1 << 20, last: 1<<20 + 65535, free: 1},
		{name: "remainder unused", first: 1 << 20, last: 1<<20 + 2*65536 - 2, free: 1},
		{name: "last below 2^31", first: 0x7FFF0000, last: 0x7FFFFFFF, free: 1},
		{name: "in use", first: 1 << 20, last: 1<<20 + 4*65536 - 1, inUse: []uint32{1<<20 + 65536}, free: 3},
		{name: "in use off the grid blocks two", first: 1 << 20, last: 1<<20 + 4*65536 - 1, inUse: []uint32{1<<20 + 7}, free: 2},
		{name: "in use elsewhere", first: 1 << 20, last: 1<<20 + 65535, inUse: []uint32{1 << 24}, free: 1},
		{name: "in use twice", first: 1 << 20, last: 1<<20 + 65535, inUse: []uint32{9, 9}, wantErr: "two sandboxes"},
		{name: "uid 0", first: 0, last: 1 << 20, wantErr: "ids.first"},
		{name: "host users", first: 1000, last: 1 << 20, wantErr: "ids.first"},
		{name: "2^31", first: 0x7FFF0000, last: 0x80000000, wantErr: "ids.last"},
		{name: "too small", first: 1 << 20, last: 1<<20 + 65534, wantErr: "at least one range"},
		{name: "backwards", first: 1 << 20, last: 1 << 19, wantErr: "at least one range"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := idmap.New(tt.first, tt.last, tt.inUse)
			if (err != nil) != (tt.wantErr != "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Fatalf("New(%d, %d) error = %v, want one with %q", tt.first, tt.last, err, tt.wantErr)
			}
			if err == nil && p.Free() != tt.free {
				t.Errorf("Free() = %d, want %d", p.Free(), tt.free)
			}
		})
	}
}

// TestPoolProperties runs random histories: a range is never given twice, is
// inside the bounds, and comes back in the order of release.
func TestPoolProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := uint32(rapid.IntRange(1, 6).Draw(t, "ranges"))
		first := uint32(1<<20 + rapid.IntRange(0, 100).Draw(t, "offset"))
		var alien []uint32
		if rapid.Bool().Draw(t, "alien") {
			alien = append(alien, first+uint32(rapid.IntRange(1, 65535).Draw(t, "at")))
		}
		p, err := idmap.New(first, first+n*idmap.Size-1, alien)
		if err != nil {
			t.Fatal(err)
		}
		held := slices.Clone(alien)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "release") {
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				p.Release(held[i])
				p.Release(held[i]) // idempotent
				held = slices.Delete(held, i, i+1)
				continue
			}
			free := p.Free()
			got, err := p.Take()
			if (err != nil) != (free == 0) {
				t.Fatalf("Take with %d free: %v", free, err)
			}
			if err != nil {
				continue
			}
			if got < first || got+idmap.Size-1 > first+n*idmap.Size-1 {
				t.Fatalf("Take() = %d, outside the pool", got)
			}
			for _, h := range held {
				if got < h+idmap.Size && h < got+idmap.Size {
					t.Fatalf("Take() = %d overlaps %d, which is in use", got, h)
				}
			}
			held = append(held, got)
		}
		for _, h := range held {
			p.Release(h)
		}
		if p.Free() != int(n) {
			t.Fatalf("%d free after releasing all, want %d", p.Free(), n)
		}
	})
}

func TestPoolReusesLate(t *testing.T) {
	p, err := idmap.New(1<<20, 1<<20+4*idmap.Size-1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var order []uint32
	for range 4 {
		r, err := p.Take()
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, r)
	}
	if _, err := p.Take(); !errors.Is(err, idmap.ErrExhausted) {
		t.Errorf("Take of an empty pool = %v, want ErrExhausted", err)
	}
	released := []uint32{order[2], order[0], order[3]}
	for _, r := range released {
		p.Release(r)
	}
	for i, want := range released {
		if got, err := p.Take(); got != want || err != nil {
			t.Errorf("Take %d = %d, %v; want %d, released before the others", i, got, err, want)
		}
	}
}

func TestPoolConcurrent(t *testing.T) {
	p, err := idmap.New(1<<20, 1<<20+8*idmap.Size-1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	held := map[uint32]bool{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 500 {
				r, err := p.Take()
				if err != nil {
					continue
				}
				mu.Lock()
				if held[r] {
					t.Errorf("range %d given twice", r)
				}
				held[r] = true
				mu.Unlock()
				mu.Lock()
				delete(held, r)
				mu.Unlock()
				p.Release(r)
			}
		})
	}
	wg.Wait()
	if p.Free() != 8 {
		t.Errorf("%d free at the end, want 8", p.Free())
	}
}

func TestCheckHost(t *testing.T) {
	const first, last = idmap.DefaultFirst, idmap.DefaultLast
	base := map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\n+@ldap::::::\n\nnobody:x:65534:65534::/:/bin/false\n",
		"group":  "root:x:0:\n# a comment\nbig:x:1000:" + strings.Repeat("user,", 30_000) + "\n",
	}
	tests := []struct {
		name, file, content string
		want                []string // all in the error; none: no error
	}{
		{name: "ordinary host"},
		{name: "no subordinate ids clash", file: "subuid", content: "joe:100000:65536\n"},
		{name: "user", file: "passwd", content: "a:x:2013265921:5::/:\n", want: []string{"/etc/passwd line 1", "a has ids 2013265921"}},
		{name: "primary group", file: "passwd", content: "a:x:5:2013265921::/:\n", want: []string{"/etc/passwd line 1"}},
		{name: "group", file: "group", content: "g:x:2147352575:\n", want: []string{"/etc/group line 1", "ids.first"}},
		{name: "just above", file: "group", content: "g:x:2147352576:\n"},
		{name: "subuid reaches in", file: "subuid", content: "joe:2013265920:1\n", want: []string{"/etc/subuid line 1"}},
		{name: "subuid just below", file: "subuid", content: "joe:2013200384:65536\n"},
		{name: "subgid covers", file: "subgid", content: "joe:0:4294967295\n", want: []string{"/etc/subgid line 1"}},
		{name: "empty subgid", file: "subgid", content: "joe:2013265920:0\n"},
		{name: "all at once", file: "group", content: "g:x:2013265921:\nh:x:2013265922:\n", want: []string{"line 1", "line 2"}},
		{name: "unreadable line", file: "passwd", content: "a:x:-1:5::/:\n", want: []string{"not an id"}},
		{name: "short line", file: "subuid", content: "joe:5\n", want: []string{"too few fields"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			etc := fstest.MapFS{}
			for k, v := range base {
				etc[k] = &fstest.MapFile{Data: []byte(v)}
			}
			if tt.file != "" {
				etc[tt.file] = &fstest.MapFile{Data: []byte(tt.content)}
			}
			err := idmap.CheckHost(etc, first, last)
			if (err != nil) != (len(tt.want) > 0) {
				t.Fatalf("CheckHost = %v, want error: %t", err, len(tt.want) > 0)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("CheckHost = %v, want it to tell %q", err, w)
				}
			}
		})
	}
	if err := idmap.CheckHost(fstest.MapFS{}, first, last); err == nil {
		t.Error("CheckHost without a passwd file passed")
	}
}

func FuzzCheckHost(f *testing.F) {
	f.Add("joe:100000:65536\n", uint32(100001))
	f.Add("joe:100000:1", uint32(100000))
	f.Add("+\n-x\n#\njoe:4294967295:4294967295\n", uint32(70000))
	f.Fuzz(func(t *testing.T, subuid string, id uint32) {
		if id < idmap.Size || id > 1<<31-idmap.Size {
			return
		}
		etc := fstest.MapFS{"passwd": {}, "group": {}, "subuid": {Data: []byte(subuid)}}
		if idmap.CheckHost(etc, id, id+idmap.Size-1) != nil {
			return
		}
		// What passes does not change when a user with one of the ids comes.
		etc["passwd"] = &fstest.MapFile{Data: []byte("u:x:" + itoa(id+5) + ":0::/:\n")}
		if idmap.CheckHost(etc, id, id+idmap.Size-1) == nil {
			t.Errorf("a user with id %d passed", id+5)
		}
	})
}

func itoa(n uint32) string {
	b := []byte{}
	for ; n > 0 || len(b) == 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

func TestUserNS(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	f, err := idmap.ForCaller(t.Context(), 4242, 4343, 0x78000000+1000, 0x78000000+1001, []uint32{4343, 0, 77, 77, 78})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var a, b unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &a); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat("/proc/self/ns/user", &b); err != nil {
		t.Fatal(err)
	}
	if a.Ino == b.Ino {
		t.Error("the user namespace is our own")
	}
	if typ, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || typ != unix.CLONE_NEWUSER {
		t.Errorf("NS_GET_NSTYPE = %#x, %v; want a user namespace", typ, err)
	}
	// The map is proven by a mount: a file of 4242 appears as the agent's.
	dir := t.TempDir()
	for name, ids := range map[string][2]int{"mine": {4242, 4343}, "other": {0, 0}, "group": {4242, 78}} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir+"/"+name, ids[0], ids[1]); err != nil {
			t.Fatal(err)
		}
	}
	kerneltest.Require(t, kerneltest.IDMap)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(f.Fd())}); err != nil {
		t.Fatalf("mount_setattr: %v", err)
	}
	for name, want := range map[string][2]uint32{"mine": {0x78000000 + 1000, 0x78000000 + 1001}, "other": {65534, 65534}, "group": {0x78000000 + 1000, 0x78000000 + 1003}} {
		var st unix.Stat_t
		if err := unix.Fstatat(tree, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		if st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s appears as %d:%d, want %d:%d", name, st.Uid, st.Gid, want[0], want[1])
		}
	}
}

func TestManyGroups(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	groups := make([]uint32, 1000)
	for i := range groups {
		groups[i] = 4_000_000_000 + uint32(i)
	}
	f, err := idmap.ForCaller(t.Context(), 4_000_000_000, 3_000_000_000, 0x7FFD0000, 0x7FFD0000, groups)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestUserNSLeavesNoChild(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	for range 5 {
		f, err := idmap.ForCaller(t.Context(), 1, 1, 1<<20, 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	var st unix.WaitStatus
	if pid, err := unix.Wait4(-1, &st, unix.WNOHANG|unix.WALL, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("wait4 = %d, %v; want no child left", pid, err)
	}
}

func TestUserNSRefused(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	// Overlapping lines: the kernel refuses the map, and no child stays.
	if f, err := idmap.UserNS(t.Context(), []idmap.Map{{0, 1 << 20, 10}, {5, 1 << 21, 10}}, nil); err == nil {
		f.Close()
		t.Error("overlapping maps were accepted")
	}
	var st unix.WaitStatus
	if pid, err := unix.Wait4(-1, &st, unix.WNOHANG|unix.WALL, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("wait4 = %d, %v; want no child left", pid, err)
	}
}

func BenchmarkUserNS(b *testing.B) {
	kerneltest.Require(b, kerneltest.Root)
	for b.Loop() {
		f, err := idmap.ForCaller(b.Context(), 1000, 1000, 1<<20, 1<<20, nil)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
