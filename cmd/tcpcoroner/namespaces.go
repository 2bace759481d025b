package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder/afpacket"
)

// namespaces keeps the source attached to the network namespaces that are to be
// recorded: those with a configured path, and on wish those of all processes. What
// ended the source lets go by itself.
type namespaces struct {
	source *afpacket.Source
	proc   string // where procfs is mounted
	// limit is how many may be attached: each has a ring of its own.
	limit    int
	wanted   []string // paths
	discover bool

	mu       sync.Mutex
	left     int // found, but beyond the limit
	failures []string
}

// look attaches what is there and not attached yet. What fails is tried again by
// the next look, and is a problem until then.
func (n *namespaces) look() {
	failures, missing := n.attachWanted()
	left := 0
	if n.discover {
		found, err := afpacket.Discover(n.proc)
		if err != nil {
			failures = append(failures, err.Error()) // what was found is attached
		}
		var failed []string
		left, failed = n.attachFound(found, n.limit-missing)
		failures = append(failures, failed...)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left, n.failures = left, failures
}

// attachWanted attaches what the configured paths name now, and counts those of
// them that are not recorded.
func (n *namespaces) attachWanted() (failures []string, missing int) {
	for _, path := range n.wanted {
		err := n.source.Attach(path)
		if err != nil && !errors.Is(err, afpacket.ErrAttached) {
			failures = append(failures, err.Error())
			missing++
		}
	}
	n.letGo()
	return failures, missing
}

// letGo detaches the oldest of those that no path of the configuration names while
// there are more than there is room for: a path was made anew, and processes are
// left in the namespace that it named before.
func (n *namespaces) letGo() {
	attached := n.source.Attached()
	for over := len(attached) - n.limit; over > 0; over-- {
		i := slices.IndexFunc(attached, func(a evidence.Namespace) bool { return !slices.Contains(n.wanted, a.Path) })
		if i < 0 {
			return // each path has one; an old one of them leaves with the source's next look
		}
		_ = n.source.Detach(attached[i].Path) // it may have ended meanwhile
		attached = slices.Delete(attached, i, i+1)
	}
}

// attachFound attaches namespaces of processes up to the limit, and counts those
// that are left.
func (n *namespaces) attachFound(found []evidence.Namespace, limit int) (left int, failures []string) {
	attached := n.source.Attached()
	used := len(attached)
	for _, space := range found {
		if slices.ContainsFunc(attached, func(a evidence.Namespace) bool { return a.Inode == space.Inode }) {
			continue
		}
		if used >= limit {
			left++
			continue
		}
		switch err := n.source.Attach(space.Path); {
		case err == nil:
			used++
		case !errors.Is(err, fs.ErrNotExist): // it ended meanwhile
			failures = append(failures, err.Error())
		}
	}
	return left, failures
}

// problems are what is not recorded, and why. It is safe for concurrent use.
func (n *namespaces) problems() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.left > 0 {
		list = append(list, fmt.Sprintf("%d network namespaces are not recorded: recorder.memory has room for the rings of %d", n.left, n.limit))
	}
	for _, f := range n.failures {
		list = append(list, "namespaces: "+f)
	}
	return list
}

// interfacesIn leaves out the interfaces of namespaces that are not recorded any
// more; 0 is the daemon's own.
func interfacesIn(attached []evidence.Namespace, all []evidence.Interface) (list []evidence.Interface) {
	for _, i := range all {
		if i.Namespace == 0 || slices.ContainsFunc(attached, func(n evidence.Namespace) bool { return n.Index == i.Namespace }) {
			list = append(list, i)
		}
	}
	return list
}
