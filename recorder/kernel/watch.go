package kernel

import "fmt"

// namespaces is the number of bits of bpf/maps.h, by inode number of a network
// namespace.
const namespaces = 4096

// watched are such bits.
type watched [namespaces / 64]uint64

// bitsOf marks the namespaces, and 0: a segment without a device has none.
func bitsOf(inodes []uint64) (w watched) {
	for _, inode := range append([]uint64{0}, inodes...) {
		w[inode/64%(namespaces/64)] |= 1 << (inode % 64)
	}
	return w
}

// adds tells whether w has a namespace that old has not.
func (w *watched) adds(old *watched) bool {
	for i := range w {
		if w[i]&^old[i] != 0 {
			return true
		}
	}
	return false
}

// Watch tells whose connections matter: those of the network namespaces with these
// inode numbers. At first all are watched. The others cost little from now on;
// few of them may still be told of, for their numbers look alike. The owners of
// sockets that are in a new one already are looked up.
func (k *Kernel) Watch(inodes []uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.maps == nil {
		return nil
	}
	bits := bitsOf(inodes)
	if bits == k.watched {
		return nil
	}
	before := k.watched
	if err := k.setWatched(bits); err != nil {
		return err
	}
	if bits.adds(&before) {
		k.seed()
	}
	return nil
}

// everywhere is what Open begins with.
func everywhere() (w watched) {
	for i := range w {
		w[i] = ^uint64(0)
	}
	return w
}

func (k *Kernel) setWatched(bits watched) error {
	m := k.maps[bpfMapWatched]
	for i, word := range bits {
		if err := m.Put(uint32(i), word); err != nil {
			return fmt.Errorf("watch network namespaces: %w", err)
		}
	}
	k.watched = bits
	return nil
}
