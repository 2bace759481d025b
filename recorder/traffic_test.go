package recorder

import (
	"encoding/binary"
	"math/rand/v2"

	"tcpcoroner/evidence"
)

// traffic makes packets that look like connections: handshakes, data both ways,
// losses, SACK, resets, odd options, IPv6, several interfaces, ICMP errors.
type traffic struct {
	r     *rand.Rand
	nanos int64
	conns []*connection
}

type connection struct {
	v6, stamps bool
	client     [2][16]byte // addresses of client and server
	ports      [2]uint16
	seq, value [2]uint32
	id         [2]uint16
	sent       int
}

func newTraffic(seed uint64) *traffic {
	return &traffic{r: rand.New(rand.NewPCG(seed, 7)), nanos: base.UnixNano()}
}

// next returns a packet; some are shown again on a second interface.
func (t *traffic) next() []evidence.Packet {
	t.nanos += int64(t.r.ExpFloat64() * 40000)
	if t.r.IntN(200) == 0 {
		t.nanos -= 3000 // another CPU
	}
	if len(t.conns) < 8 || t.r.IntN(30) == 0 {
		t.conns = append(t.conns, t.connect())
	}
	n := t.r.IntN(len(t.conns))
	c := t.conns[n]
	header, payload := c.segment(t.r)
	if c.sent > 5 && t.r.IntN(25) == 0 {
		t.conns = append(t.conns[:n], t.conns[n+1:]...)
	}
	p := evidence.Packet{
		Nanos: t.nanos, Interface: 2, LinkType: 1, Direction: evidence.Direction(1 + t.r.IntN(2)),
		SrcMAC: [6]byte{2, 0, 0, 0, 0, byte(t.r.IntN(3))}, WireBytes: uint32(len(header)) + payload, Header: header,
	}
	if t.r.IntN(50) == 0 {
		p.VLAN, p.Namespace = [2]uint16{7, uint16(t.r.IntN(9))}, uint16(t.r.IntN(2))
	}
	if p.WireBytes < wirePadding && p.Direction == evidence.Received {
		p.WireBytes = wirePadding
	}
	if t.r.IntN(20) != 0 {
		return []evidence.Packet{p}
	}
	again := p
	again.Nanos += 900
	again.Interface = 3
	return []evidence.Packet{p, again}
}

func (t *traffic) connect() *connection {
	c := &connection{v6: t.r.IntN(4) == 0, stamps: t.r.IntN(4) != 0,
		ports: [2]uint16{uint16(32768 + t.r.IntN(20000)), []uint16{80, 443, 5432}[t.r.IntN(3)]}}
	for i := range c.client {
		c.client[i] = [16]byte{0xfd, 1, 15: byte(i * 7), 14: byte(t.r.IntN(3))}
		c.seq[i], c.value[i], c.id[i] = t.r.Uint32(), t.r.Uint32(), uint16(t.r.Uint32())
	}
	return c
}

// segment makes the next segment of a connection, by either side.
func (c *connection) segment(r *rand.Rand) (header []byte, payload uint32) {
	side := r.IntN(2)
	flags, options := byte(0x10), []byte(nil)
	switch {
	case c.sent < 2:
		side, flags = c.sent, []byte{2, 0x12}[c.sent]
		options = []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
	case r.IntN(3) == 0:
		payload, flags = uint32(1+r.IntN(3)*700), 0x18
	case r.IntN(20) == 0:
		flags = []byte{4, 0x14, 0x11, 0x38, 0xd0}[r.IntN(5)]
	}
	c.sent++
	c.value[side] += uint32(r.IntN(3))
	c.id[side] += uint16(r.IntN(2))
	if options == nil && c.stamps {
		options = []byte{1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(options[4:], c.value[side])
		binary.BigEndian.PutUint32(options[8:], c.value[1-side])
	}
	switch r.IntN(40) {
	case 0: // SACK
		options = append(options, 1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, byte(r.Uint32()))
	case 1: // malformed
		options = append(options, 8, 1, byte(r.Uint32()), 0)
	case 2: // unknown
		options = append(options, 30, 4, byte(r.Uint32()), 0)
	}
	header = c.build(r, side, flags, options, payload)
	c.seq[side] += payload + uint32(flags&1) + uint32(flags>>1&1)
	return header, payload
}

func (c *connection) build(r *rand.Rand, side int, flags byte, options []byte, payload uint32) []byte {
	at := ip4Head
	if c.v6 {
		at = ip6Head
	}
	n := minTCP + len(options)
	b := make([]byte, at+n)
	t := b[at:]
	binary.BigEndian.PutUint16(t, c.ports[side])
	binary.BigEndian.PutUint16(t[2:], c.ports[1-side])
	binary.BigEndian.PutUint32(t[4:], c.seq[side]-uint32(r.IntN(20)/19*100))
	binary.BigEndian.PutUint32(t[8:], c.seq[1-side])
	t[12], t[13] = byte(n/4)<<4|byte(r.IntN(60)/59), flags
	binary.BigEndian.PutUint16(t[14:], uint16(500+r.IntN(4)))
	copy(t[minTCP:], options)
	length := uint32(n) + payload
	var sum uint64
	if c.v6 {
		b[0], b[6], b[7] = 0x60, protoTCP, 64
		binary.BigEndian.PutUint16(b[4:], uint16(length))
		copy(b[8:], c.client[side][:])
		copy(b[24:], c.client[1-side][:])
		sum = sum64(b[8:ip6Head])
	} else {
		b[0], b[6], b[8], b[9] = 0x45, 0x40, byte(64-r.IntN(30)/29), protoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(ip4Head+length))
		binary.BigEndian.PutUint16(b[4:], c.id[side])
		copy(b[12:], c.client[side][12:])
		copy(b[16:], c.client[1-side][12:])
		binary.LittleEndian.PutUint16(b[10:], ^fold(sum64(b[:ip4Head]))+uint16(r.IntN(50)/49))
		sum = sum64(b[12:ip4Head])
	}
	sum += pseudo(length)
	switch kind := r.IntN(10); {
	case kind == 0:
		binary.LittleEndian.PutUint16(t[16:], fold(sum)) // left to hardware
	case kind == 1:
		binary.LittleEndian.PutUint16(t[16:], uint16(r.Uint32())) // wrong
	case payload == 0:
		binary.LittleEndian.PutUint16(t[16:], ^fold(sum+sum64(t)))
	default:
		binary.LittleEndian.PutUint16(t[16:], 0xbeef)
	}
	return b
}
