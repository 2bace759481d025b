package recorder

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// When Read has returned, nobody asks for chunks any more: their memory may go.
func TestReadEndsWithItsChunks(t *testing.T) {
	tr, all := newTraffic(1), []evidence.Packet(nil)
	for len(all) < 100 {
		all = append(all, tr.next()...)
	}
	chunk := encodeAll(t, all, true)
	for name, stopAt := range map[string]int{"at the first": 1, "in the middle": 150, "never": 0} {
		t.Run(name, func(t *testing.T) {
			begun, ended, visited := 0, false, 0
			err := Read(func(yield func([]byte, error) bool) {
				defer func() { ended = true }()
				for range 50 {
					if begun++; !yield(chunk, nil) {
						return
					}
				}
			}, base.Add(-time.Hour), base.Add(time.Hour), func(*evidence.Packet) bool {
				visited++
				return visited != stopAt
			})
			if err != nil || !ended {
				t.Errorf("the chunks were left: %v, error %v", ended, err)
			}
			if stopAt == 1 && begun > 3+unpackedChunks {
				t.Errorf("%d chunks were made for %d packets", begun, visited)
			}
		})
	}
}

// Reading for somebody who can wait does not hurry.
func TestBesideKeepsThePriority(t *testing.T) {
	priority := func() int {
		n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	want, got := make(chan int, 1), make(chan int, 1)
	go func() {
		runtime.LockOSThread() // for good: its priority is its own
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 20-priority()+3); err != nil {
			t.Error(err)
		}
		want <- priority()
		beside(func() { got <- priority() })
	}()
	if w, g := <-want, <-got; w != g {
		t.Errorf("20-nice is %d, the caller's %d", g, w)
	}
}
