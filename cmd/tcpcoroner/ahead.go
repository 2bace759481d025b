package main

import (
	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

const (
	// batchPackets is how many packets change hands at once: enough that waking the
	// other thread costs nothing, few enough that they stay in the cache.
	batchPackets = 1024
	// aheadBatches bounds how far reading is ahead of judging.
	aheadBatches = 4
)

// reading calls visit for each packet of a window that is needed, in order, until it
// returns false. With nil all are needed.
type reading func(need recorder.Need, visit func(*evidence.Packet) bool) error

// batch holds packets; bytes are their headers. It owns both.
type batch struct {
	packets []evidence.Packet
	bytes   []byte
}

// add copies a packet, which is valid during a visit only. Headers that were copied
// before stay in the array that they are in when bytes grows.
func (b *batch) add(p *evidence.Packet) {
	at := len(b.bytes)
	b.bytes = append(b.bytes, p.Header...)
	b.packets = append(b.packets, *p)
	b.packets[len(b.packets)-1].Header = b.bytes[at:len(b.bytes):len(b.bytes)]
}

func (b *batch) clear() *batch {
	b.packets, b.bytes = b.packets[:0], b.bytes[:0]
	return b
}

// ahead is a reading whose packets are decoded by another thread, of less priority,
// while the caller looks at those before: a full window takes half the time where a
// processor is free. Packets, their order and their errors are those of read, and
// what it holds does not depend on their number.
func ahead(read reading) reading {
	return func(need recorder.Need, visit func(*evidence.Packet) bool) error {
		full, free, stop := make(chan *batch, aheadBatches), make(chan *batch, aheadBatches), make(chan struct{})
		for range aheadBatches {
			free <- &batch{}
		}
		var err error // valid when full is closed
		go func() {
			defer close(full)
			err = aside(func() error { return fill(read, need, full, free, stop) })
		}()
		for b := range full {
			for i := range b.packets {
				if !visit(&b.packets[i]) {
					close(stop)
					for range full { // until read returned: its packets belong to the caller
					}
					return err
				}
			}
			free <- b.clear()
		}
		return err
	}
}

// fill reads into the free batches and hands them over, until stop.
func fill(read reading, need recorder.Need, full chan<- *batch, free <-chan *batch, stop <-chan struct{}) error {
	b := <-free
	err := read(need, func(p *evidence.Packet) bool {
		if b.add(p); len(b.packets) < batchPackets {
			return true
		}
		full <- b // never blocks: there are no more batches than its room
		select {
		case b = <-free:
			return true
		case <-stop:
			b = &batch{}
			return false
		}
	})
	full <- b
	return err
}
