package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// within calls read in the namespace of Config.NetNS, on a locked thread, or
// where the thread is if there is none. A thread that cannot be brought back
// stays locked, so that it dies with its goroutine (runtime.LockOSThread).
func within[T any](t *Taker, read func() (T, error)) (result T, err error) {
	if t.cfg.NetNS == "" {
		return read()
	}
	runtime.LockOSThread()
	home, err := os.Open(filepath.Join(t.cfg.ProcRoot, "thread-self/ns/net"))
	if err != nil {
		runtime.UnlockOSThread()
		return result, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer home.Close()
	if err := enter(t.cfg.NetNS); err != nil {
		runtime.UnlockOSThread()
		return result, err
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return read()
}

func enter(path string) error {
	there, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}
