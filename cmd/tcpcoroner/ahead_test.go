package main

import (
	"encoding/binary"
	"errors"
	"testing"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

// counting reads n packets that hold their number in a header whose memory is used
// again, as the recorder does.
func counting(n int, damage error) reading {
	return func(_ recorder.Need, visit func(*evidence.Packet) bool) error {
		var header [40]byte
		var p evidence.Packet
		for i := range n {
			binary.BigEndian.PutUint32(header[:], uint32(i))
			p.Number, p.Header = i+1, header[:4+i%30]
			if !visit(&p) {
				break
			}
		}
		clear(header[:])
		return damage
	}
}

// What is needed is told to who decodes.
func TestAheadTellsTheNeed(t *testing.T) {
	var asked int
	read := ahead(func(need recorder.Need, visit func(*evidence.Packet) bool) error {
		asked = need(&evidence.Packet{Number: 7})
		return nil
	})
	if err := read(func(p *evidence.Packet) int { return p.Number }, nil); err != nil || asked != 7 {
		t.Errorf("need %d, want 7: %v", asked, err)
	}
}

func TestAhead(t *testing.T) {
	damage := errors.New("chunk 3 is damaged")
	for name, tt := range map[string]struct{ packets, stopAt, want int }{
		"no packet":           {0, -1, 0},
		"a part of a batch":   {7, -1, 7},
		"whole batches":       {2 * batchPackets, -1, 2 * batchPackets},
		"many batches":        {20*batchPackets + 3, -1, 20*batchPackets + 3},
		"stopped at first":    {20 * batchPackets, 1, 1},
		"stopped in a batch":  {20 * batchPackets, 3*batchPackets + 5, 3*batchPackets + 5},
		"stopped at the last": {7, 7, 7},
	} {
		t.Run(name, func(t *testing.T) {
			seen := 0
			err := ahead(counting(tt.packets, damage))(nil, func(p *evidence.Packet) bool {
				if p.Number != seen+1 || int(binary.BigEndian.Uint32(p.Header)) != seen || len(p.Header) != 4+seen%30 {
					t.Fatalf("packet %d is number %d with header %x", seen+1, p.Number, p.Header)
				}
				seen++
				return seen != tt.stopAt
			})
			if seen != tt.want {
				t.Errorf("%d packets, want %d", seen, tt.want)
			}
			if !errors.Is(err, damage) {
				t.Errorf("error %v, want that of reading", err)
			}
		})
	}
}
