package main

import (
	"golang.org/x/sys/unix"

	"tcpcoroner/recorder/afpacket"
)

// The share of RAM that the recorder takes unless told otherwise, and its bounds.
const (
	ramShare      = 64
	minMemory     = 16 << 20
	leastMemory   = 32 << 20
	mostMemory    = 256 << 20
	ringShare     = 4
	leastRing     = 4 << 20
	mostRing      = 32 << 20
	namespaceRing = afpacket.DefaultNamespaceRingBytes
	// namespaceShare of the memory may go to the rings of discovered namespaces.
	namespaceShare = 4
)

// sizes is how the memory of a recorder is shared, in bytes.
type sizes struct {
	memory, ring int
	// namespaces is how many network namespaces may be recorded beside the own.
	namespaces int
}

// rings are all rings together.
func (s sizes) rings() int { return s.ring + s.namespaces*namespaceRing }

// sizes settles what is automatic. RAM is in bytes.
func (c *recorderConfig) sizes(ram uint64) sizes {
	s := sizes{memory: int(c.Memory), ring: int(c.Ring), namespaces: len(c.Namespaces)}
	if s.memory == 0 {
		s.memory = int(min(max(ram/ramShare, leastMemory), mostMemory))
	}
	if s.ring == 0 {
		s.ring = min(max(s.memory/ringShare, leastRing), mostRing)
	}
	s.ring -= s.ring % (1 << 20)
	if c.Discover {
		s.namespaces = max(s.namespaces, s.memory/namespaceShare/namespaceRing)
	}
	return s
}

// ram is the host's memory in bytes (sysinfo(2)).
func ram() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}
