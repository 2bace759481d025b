package recorder

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// scanned makes the n-th SYN of a scan of 1024 closed ports from 2^24 addresses, and
// the RST that answers it.
func scanned(n uint32, syn *[ip4Head + minTCP + 12]byte, rst *[ip4Head + minTCP]byte) {
	address := n * 0x61c88647
	*syn, *rst = [ip4Head + minTCP + 12]byte{0x45, 3: 52, 6: 0x40, 8: 64, 9: protoTCP}, [ip4Head + minTCP]byte{0x45, 3: 40, 6: 0x40, 8: 64, 9: protoTCP}
	binary.BigEndian.PutUint16(syn[4:], uint16(n))
	binary.BigEndian.PutUint32(syn[12:], 10<<24|address&0xffffff)
	copy(syn[16:], []byte{10, 2, 0, 1})
	binary.BigEndian.PutUint16(syn[20:], 20000+uint16(address&0x7fff))
	binary.BigEndian.PutUint16(syn[22:], 8080+uint16(n&1023))
	binary.BigEndian.PutUint32(syn[24:], address)
	copy(syn[32:], []byte{0x80, flagSYN, 0xff, 0xff})
	copy(syn[40:], []byte{1, 1, 8, 10})
	binary.BigEndian.PutUint32(syn[44:], n/100)
	copy(rst[12:], syn[16:20])
	copy(rst[16:], syn[12:16])
	copy(rst[20:], syn[22:24])
	copy(rst[22:], syn[20:22])
	binary.BigEndian.PutUint32(rst[28:], address+1)
	copy(rst[32:], []byte{0x50, flagRST | flagACK})
	for _, b := range [][]byte{syn[:], rst[:]} {
		binary.LittleEndian.PutUint16(b[10:], ^fold(sum64(b[:ip4Head])))
		t := b[ip4Head:]
		binary.LittleEndian.PutUint16(t[16:], ^fold(sum64(b[12:ip4Head])+pseudo(uint32(len(t)))+sum64(t)))
	}
}

// A scan is no harm, however many chunks it fills, and makes nobody forget a service.
func TestHarmOfAScan(t *testing.T) {
	for _, level := range []Level{LevelFull, LevelControl} {
		const made, batch = 100_000, 100
		s := newScorer(t)
		s.harm.blind = level >= LevelHold
		c := newTalk(s, "192.0.2.7:40000", "198.51.100.1:8080").open().request().answer().say(0, sFIN, 0)
		p := evidence.Packet{Nanos: c.nanos, Interface: 2, LinkType: 1}
		var syns [batch][52]byte
		var rsts [batch][40]byte
		for n := 0; n < made; n += batch {
			for i := range batch {
				scanned(uint32(n+i), &syns[i], &rsts[i])
				p.Nanos, p.Direction, p.WireBytes, p.Header = p.Nanos+3000, evidence.Received, 52, syns[i][:]
				s.Add(&p)
			}
			for i := range batch {
				p.Nanos, p.Direction, p.WireBytes, p.Header = p.Nanos+400, evidence.Sent, 40, rsts[i][:]
				s.Add(&p)
			}
		}
		c.nanos = p.Nanos
		c.seq[0] += 5000
		c.say(0, sSYN, 0).raw(1, sRST, 0, c.seq[0], 0)
		got := s.Sample()
		want := map[evidence.HarmKind]uint64{evidence.HarmStartup: made, evidence.HarmRefusedServing: 1}
		if diff := cmp.Diff(want, kinds(&got)); diff != "" || got.Closes != made+2 {
			t.Errorf("level %v: %d closes, kinds (-want +got):\n%s", level, got.Closes, diff)
		}
	}
}

// BenchmarkAddScan records a scan of closed ports: each connection is new, is refused,
// and never comes again. The kernel takes and answers some packets at a time.
func BenchmarkAddScan(b *testing.B) {
	for _, level := range []Level{LevelFull, LevelControl} {
		b.Run(level.String(), func(b *testing.B) {
			const batch, made = 8, 1 << 20
			syns, rsts := make([][52]byte, made), make([][40]byte, made)
			for i := range syns {
				scanned(uint32(i), &syns[i], &rsts[i])
			}
			w := &newRecorder(b, Config{}).w
			w.start(&Replay{})
			w.governor.level, w.harm().blind = level, level >= LevelHold
			m, n := Meta{Nanos: base.UnixNano()}, 0
			in, out := Path{Interface: 2, LinkType: 1, Direction: evidence.Received, SrcMAC: [6]byte{2, 1}}, Path{Interface: 2, LinkType: 1, Direction: evidence.Sent, SrcMAC: [6]byte{2, 2}}
			b.ReportAllocs()
			for b.Loop() {
				if n == made {
					n = 0
				}
				m.Path, m.Trusted = in, true
				for i := range batch {
					m.Nanos += 3000
					m.WireBytes = 52
					w.Add(&m, syns[n+i][:])
				}
				m.Path, m.Trusted = out, false
				for i := range batch {
					m.Nanos += 400
					m.WireBytes = 40
					w.Add(&m, rsts[n+i][:])
				}
				n += batch
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(2*batch), "ns/packet")
		})
	}
}
