package snapshot

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// read reads a file below the proc root. It makes as few system calls as there
// can be: os.ReadFile asks for a size, which proc(5) does not know, and offers
// each file to the network poller, which does not take it.
func (t *Taker) read(name string) (string, error) {
	return t.readFile(filepath.Join(t.cfg.ProcRoot, name), maxFile)
}

// maxFile bounds what is read of one file in bytes. Kernel tables are far smaller.
const maxFile = 4 << 20

// readFile reads the first bytes of a file, limit at most.
func (t *Taker) readFile(path string, limit int) (string, error) {
	fd, err := openFile(path)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	buf := t.buffer()
	defer t.buffers.Put(buf)
	text := (*buf)[:0]
	for {
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0 || len(text)+n >= limit:
			return string(text[:min(len(text)+n, limit)]), nil
		default:
			text = text[:len(text)+n]
		}
	}
}

// openFile repeats what a signal interrupts.
func openFile(path string) (fd int, err error) {
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	return fd, err
}

// netFiles are files of /proc/net, held open: making a new one's buffer costs the
// kernel more than filling it (traverse and seq_read_iter in fs/seq_file.c). An
// open file stays with the namespace that it was opened in (proc_net.c), and
// keeps that alive.
type netFiles struct {
	mu        sync.Mutex
	namespace [2]uint64 // device and inode of /proc/thread-self/ns/net
	open      map[string]*os.File
}

// enter forgets the files of another namespace than this thread's.
func (f *netFiles) enter(root string) {
	var st unix.Stat_t
	here := [2]uint64{}
	if unix.Stat(filepath.Join(root, "thread-self/ns/net"), &st) == nil {
		here = [2]uint64{st.Dev, st.Ino}
	}
	if here != f.namespace || here == [2]uint64{} {
		_ = f.forget()
	}
	f.namespace = here
}

func (f *netFiles) forget() error {
	var errs []error
	for _, file := range f.open {
		errs = append(errs, file.Close())
	}
	f.open = map[string]*os.File{}
	return errors.Join(errs...)
}

// read reads a file of this namespace from its beginning. buf grows as needed.
func (f *netFiles) read(root, name string, buf *[]byte) (string, error) {
	file := f.open[name]
	if file == nil {
		var err error
		if file, err = os.Open(filepath.Join(root, "thread-self/net", name)); err != nil {
			return "", err
		}
		f.open[name] = file
	}
	for {
		n, err := file.ReadAt(*buf, 0)
		switch {
		case errors.Is(err, io.EOF):
			return string((*buf)[:n]), nil
		case err != nil:
			return "", err
		}
		*buf = make([]byte, 2*len(*buf))
	}
}
