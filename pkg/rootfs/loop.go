package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// attachLoop gives image a loop device, see loop(4). The device is freed when
// the returned file and every mount of it are gone, a crash included.
func attachLoop(image, id string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, api.Errorf(api.CodeUnsupportedHost, "no loop devices: %w", err).
			WithHint("load the kernel module loop; only a writable root of at most a quarter of limits.memory works without")
	}
	defer control.Close()
	for range 100 { // another process may take the free device before us
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		conf := unix.LoopConfig{
			Fd:   uint32(backing.Fd()),
			Size: 4096, // the image's block size, for direct I/O: no second copy in the page cache
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
		}
		copy(conf.Info.File_name[:len(conf.Info.File_name)-1], "creel-"+id)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &conf)
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up loop device: %w", err)
		}
	}
	return nil, api.Errorf(api.CodeUnavailable, "no loop device stays free long enough").WithHint("try again")
}

// loopsOf opens the loop devices of image. The caller closes them.
func loopsOf(image string) (devs []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(devs)
		}
	}()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !backs(f, image) {
			continue
		}
		dev, err := os.OpenFile("/dev/"+strings.Split(f, "/")[3], os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return devs, fmt.Errorf("loop device: %w", err)
		}
		// Until it was open it could be freed, and become another's.
		if !backs(f, image) {
			_ = dev.Close()
			continue
		}
		devs = append(devs, dev)
	}
	return devs, nil
}

func backs(sysfs, image string) bool {
	b, err := os.ReadFile(sysfs) // fails when it was freed in the meantime
	return err == nil && strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)") == image
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// detachLoops frees the loop devices of image. One that is still mounted
// somewhere is freed when it no longer is.
func detachLoops(image string) error {
	devs, err := loopsOf(image)
	if err != nil {
		return err
	}
	defer closeAll(devs)
	for _, dev := range devs {
		err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
		if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: free already
			return fmt.Errorf("free loop device %s: %w", dev.Name(), err)
		}
	}
	return nil
}
