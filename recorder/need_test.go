package recorder

import (
	"bytes"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// likeness is what packets have in common that are alike for a Need.
type likeness struct {
	src, dst netip.AddrPort
	ttl      uint8
	sighting uint8
	path     Path
}

// likenessOf returns false for what is always visited.
func likenessOf(p *evidence.Packet) (k likeness, ok bool) {
	var f fields
	var s evidence.Segment
	if !f.take(metaOf(p), p.Header) || f.flags&flagRST != 0 || evidence.ParseSegment(p, &s) != nil {
		return k, false
	}
	return likeness{s.Src, s.Dst, s.TTL, p.Sighting, metaOf(p).Path}, true
}

// needs are Needs by the packet's source.
var needs = map[string]func(likeness) int{
	"nothing":       func(likeness) int { return 0 },
	"less":          func(likeness) int { return -7 },
	"all":           func(likeness) int { return math.MaxInt },
	"the first":     func(likeness) int { return 1 },
	"some of some":  func(k likeness) int { return int(k.src.Port()%3) * 2 },
	"all of some":   func(k likeness) int { return int(k.src.Port() % 5 / 4 * 255) },
	"by the path":   func(k likeness) int { return int(k.path.SrcMAC[5]) * int(k.path.Interface-2) },
	"by the TTL":    func(k likeness) int { return int(k.ttl&1) * 3 },
	"by the server": func(k likeness) int { return int(k.dst.Port() & 7) },
}

// busy makes chunks of traffic, of which the packets do not come in order of time.
func busy(t *testing.T, seed uint64) iter.Seq2[[]byte, error] {
	t.Helper()
	tr, r := newTraffic(seed), rand.New(rand.NewPCG(seed, 3))
	var chunks [][]byte
	for range 3 {
		var all []evidence.Packet
		for len(all) < 2500 {
			for _, p := range tr.next() {
				if r.IntN(8) > 0 { // most come one way
					p.SrcMAC, p.Direction = [6]byte{2}, evidence.Received
				}
				if r.IntN(30) == 0 {
					p.Nanos -= int64(r.IntN(2e6)) // of another ring
				}
				if p.Header[0] == 0x45 && r.IntN(10) == 0 {
					p.Header[8]-- // another way through the network
				}
				all = append(all, p)
			}
		}
		chunks = append(chunks, encodeAll(t, all, seed%2 == 0))
	}
	return sequence(chunks...)
}

// kept reads what is needed, by Number.
func kept(t *testing.T, chunks iter.Seq2[[]byte, error], from, to time.Time, need Need) (all []evidence.Packet) {
	t.Helper()
	if err := ReadNeeded(chunks, from, to, need, func(p *evidence.Packet) bool {
		k := *p
		k.Header = bytes.Clone(p.Header)
		all = append(all, k)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestReadNeeded: what is visited is as it is without a Need, with its Number, and
// what is not comes after as many like it as are needed.
func TestReadNeeded(t *testing.T) {
	for seed := range uint64(2) {
		chunks, from, to := busy(t, seed), base.Add(50*time.Millisecond), base.Add(400*time.Millisecond)
		all := kept(t, chunks, from, to, nil)
		for name, need := range needs {
			t.Run(fmt.Sprintf("%s %d", name, seed), func(t *testing.T) {
				some := kept(t, chunks, from, to, func(p *evidence.Packet) int {
					k, ok := likenessOf(p)
					if !ok {
						t.Errorf("asked about % x", p.Header)
					}
					return need(k)
				})
				checkNeeded(t, all, some, need)
			})
		}
	}
}

func checkNeeded(t *testing.T, all, some []evidence.Packet, need func(likeness) int) {
	t.Helper()
	came, spare := map[likeness]int{}, 0
	for i := range all {
		k, plain := likenessOf(&all[i])
		if len(some) > 0 && some[0].Number == i+1 {
			if !reflect.DeepEqual(all[i], some[0]) {
				t.Fatalf("packet %d differs (-all +needed):\n%s", i+1, cmp.Diff(all[i], some[0]))
			}
			if plain && need(k) <= 0 {
				spare++
			}
			came[k]++
			some = some[1:]
		} else if n := need(k); !plain || n >= needAll || came[k] < n {
			t.Fatalf("packet %d is missing: %+v of which %d came and %d are needed", i+1, k, came[k], n)
		}
	}
	if len(some) > 0 {
		t.Errorf("packet %d is of nowhere", some[0].Number)
	}
	// Some were kept byte for byte, for their options are of too many layouts.
	if spare > len(all)/50 {
		t.Errorf("%d of %d packets were visited and nobody needs them", spare, len(all))
	}
}

// A reader that has enough ends the reading, whatever else is needed.
func TestReadNeededStops(t *testing.T) {
	chunks, n := busy(t, 9), 0
	err := ReadNeeded(chunks, base.Add(-time.Hour), base.Add(time.Hour), func(*evidence.Packet) int { return 1 }, func(*evidence.Packet) bool {
		n++
		return n < 100
	})
	if n != 100 || err != nil {
		t.Errorf("%d packets were visited, want 100: %v", n, err)
	}
}
