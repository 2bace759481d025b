package afpacket

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// requests is what the source shares with other goroutines: what they ask of the
// reader, and what it tells them.
type requests struct {
	attaching sync.Mutex // one Attach at a time

	state   sync.Mutex
	event   int // eventfd that ends the reader's wait, -1 if there is none
	ended   bool
	arrived []*ring
	leaving []uint64 // inodes
	spaces  []space
	names   []evidence.Interface
	pending atomic.Bool
}

// space is a namespace that was attached, its index the place in the list.
type space struct {
	evidence.Namespace
	gone bool
}

// Wake implements recorder.Source.
func (q *requests) Wake() {
	q.state.Lock()
	defer q.state.Unlock()
	q.wake()
}

func (q *requests) wake() {
	if !q.ended && q.event >= 0 {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(q.event, one[:])
	}
}

// Interfaces implements recorder.Source.
func (q *requests) Interfaces() []evidence.Interface {
	q.state.Lock()
	defer q.state.Unlock()
	return slices.Clone(q.names)
}

func (q *requests) addInterfaces(found []evidence.Interface) {
	q.state.Lock()
	defer q.state.Unlock()
	q.names = append(q.names, found...)
}

// Namespaces implements recorder.Source: all that were attached, also those that
// are gone, in the order of their index.
func (q *requests) Namespaces() (all []evidence.Namespace) {
	q.state.Lock()
	defer q.state.Unlock()
	for _, s := range q.spaces {
		all = append(all, s.Namespace)
	}
	return all
}

// Attached lists the namespaces that are recorded now. It is safe for concurrent
// use.
func (q *requests) Attached() (all []evidence.Namespace) {
	q.state.Lock()
	defer q.state.Unlock()
	for _, s := range q.spaces {
		if !s.gone {
			all = append(all, s.Namespace)
		}
	}
	return all
}

// arrive hands a ring to the reader.
func (q *requests) arrive(r *ring, n evidence.Namespace) error {
	q.state.Lock()
	defer q.state.Unlock()
	if q.ended {
		return ErrClosed
	}
	q.spaces = append(q.spaces, space{Namespace: n})
	q.arrived = append(q.arrived, r)
	q.pending.Store(true)
	q.wake()
	return nil
}

// Detach ends the recording of a network namespace that was attached by this
// path. What the reader has not read yet is read before. It returns at once.
func (q *requests) Detach(path string) error {
	q.state.Lock()
	defer q.state.Unlock()
	for i := range q.spaces {
		if s := &q.spaces[i]; s.Path == path && !s.gone {
			s.gone = true
			q.leaving = append(q.leaving, s.Inode)
			q.pending.Store(true)
			q.wake()
			return nil
		}
	}
	return fmt.Errorf("detach network namespace %s: it is not attached", path)
}

// lost notes that a namespace is not recorded.
func (q *requests) lost(inode uint64) {
	q.state.Lock()
	defer q.state.Unlock()
	for i := range q.spaces {
		if s := &q.spaces[i]; s.Inode == inode {
			s.gone = true
		}
	}
}

// moved tells another path of a namespace.
func (q *requests) moved(inode uint64, path string) {
	q.state.Lock()
	defer q.state.Unlock()
	for i := range q.spaces {
		if s := &q.spaces[i]; s.Inode == inode && !s.gone {
			s.Path = path
		}
	}
}

// takeRequests empties the lists.
func (q *requests) takeRequests() (arrived []*ring, leaving []uint64) {
	q.state.Lock()
	defer q.state.Unlock()
	arrived, leaving = q.arrived, q.leaving
	q.arrived, q.leaving = nil, nil
	q.pending.Store(false)
	return arrived, leaving
}

// endRequests takes no more of them; it returns the rings that nobody took.
func (q *requests) endRequests() []*ring {
	q.state.Lock()
	defer q.state.Unlock()
	q.ended = true
	if q.event >= 0 {
		_ = unix.Close(q.event)
	}
	return q.arrived
}

// serve does what was asked for.
func (s *Source) serve() {
	if !s.pending.Load() {
		return
	}
	arrived, leaving := s.takeRequests()
	for _, r := range arrived {
		if s.adopt(r) != nil {
			s.filterErrors.Add(1)
			s.lost(r.inode)
		}
	}
	for _, inode := range leaving {
		s.rings = slices.DeleteFunc(s.rings, func(r *ring) bool {
			if r.inode != inode {
				return false
			}
			s.leave(r)
			return true
		})
	}
	s.open.Store(uint64(len(s.rings)))
}

// leave reads the rest of a ring and closes it, which waits for the kernel.
func (s *Source) leave(r *ring) {
	s.flushRing(r)
	s.countKernel(r)
	s.addInterfaces(r.newInterfaces())
	s.background.Go(r.close)
}
