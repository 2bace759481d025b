package recorder

import (
	"fmt"
	"iter"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// unpacked is a chunk of which the columns are expanded, in memory of its own.
type unpacked struct {
	head    // without packets if there is none inside the bounds
	columns [columns]cursor
	times   []int64 // of all packets, as far as the column goes
	memory  []byte
	err     error
}

// unpackedChunks is how many there are at once: one that is decoded, the next, whose
// head must be known for that, and one that is made meanwhile.
const unpackedChunks = 3

// unpacking makes chunks ready to be decoded, by a thread of its own.
type unpacking struct {
	full, free chan *unpacked
	stop       chan struct{}
}

// unpack begins; end must be called. Whoever takes one from full puts it into free.
func unpack(chunks iter.Seq2[[]byte, error], from, to int64) *unpacking {
	u := &unpacking{make(chan *unpacked, unpackedChunks), make(chan *unpacked, unpackedChunks), make(chan struct{})}
	for range unpackedChunks {
		u.free <- &unpacked{}
	}
	beside(func() { u.run(chunks, from, to) })
	return u
}

// end returns when nobody reads the chunks any more.
func (u *unpacking) end() {
	close(u.stop)
	for range u.full {
	}
}

func (u *unpacking) run(chunks iter.Seq2[[]byte, error], from, to int64) {
	defer close(u.full)
	n := 0
	for chunk, err := range chunks {
		n++
		select {
		case <-u.stop:
			return
		case c := <-u.free:
			if err == nil {
				err = c.read(chunk, from, to)
			}
			if c.err = err; err != nil {
				c.err = fmt.Errorf("read chunk %d: %w", n, err)
			}
			u.full <- c // there is room for all
		}
	}
}

func (u *unpacked) read(b []byte, from, to int64) error {
	u.packets = 0
	h, err := parseHead(b)
	if err != nil || h.first > to || h.last < from {
		return err
	}
	if u.columns, u.memory, err = columnsOf(b, u.memory); err != nil {
		return err
	}
	u.head = h
	u.readTimes()
	return nil
}

// readTimes reads the whole column: who puts packets into order looks ahead.
func (u *unpacked) readTimes() {
	n := int(u.packets)
	u.times = slices.Grow(u.times[:0], n)
	c, at, end := u.columns[colTime], int64(0), false
	c.bad = &end
	for range n {
		if at += c.signed(); end {
			return
		}
		u.times = append(u.times, at)
	}
}

// beside runs f on a thread that has the priority of the caller's.
func beside(f func()) {
	inverse, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice (getpriority(2), of a thread on Linux)
	go func() {
		if err == nil {
			runtime.LockOSThread() // for good: the thread ends with its goroutine
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-inverse)
		}
		f()
	}()
}
