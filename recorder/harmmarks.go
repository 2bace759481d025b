package recorder

import (
	"math/bits"

	"tcpcoroner/evidence"
)

// mark remembers one fact about one thing for a while, both by hash.
type mark struct {
	tag, at uint32
	value   uint64
}

// marks are sets of harmWays: in each the oldest makes room. There is a power of two.
type marks []mark

const (
	// harmServices is for what services say, harmRefusals for what a scan, too, says:
	// it must not make anybody forget a service.
	harmServices = 2 << 10
	harmRefusals = 4 << 10
)

// The things that are marked.
const (
	markService   = iota + 1 // a port that serves: when it did last
	markSource               // a client: the ports that it found closed
	markTries                // a client and a port: how often it was refused
	markCopy                 // a reset, to know it again in another namespace
	markAnswer               // a port that accepted a connection over IPv4
	markLeft                 // a client and a service: the answers that it left at once
	markAbandoned            // a service: that somebody left an answer of it
)

const (
	servingFor = 3600_000 // milliseconds
	triesFor   = 10_000
	copiedFor  = 1000
	// fallbackFor is how long after an answer over IPv4 nobody misses one over IPv6.
	fallbackFor = 5000
	// leftFor is how long it takes to leave a page: all is closed at once, and what is
	// on its way then is answered with RST a round trip later. With up to perPage
	// connections, as many as browsers have to a server of HTTP/1.1.
	leftFor = 200
	perPage = 6
	// abandonedFor is how long after somebody left an answer the next one who does is
	// harm: less would hide a service that many give up, each once.
	abandonedFor = 5000
	// scanPorts is how many ports make a scan. A client's mark has a set of portSet
	// bits, and above them the first port that refused it.
	scanPorts = 10
	portSet   = 48
)

// service is the mark of an end of the segment that accepts connections: 0 is the
// source.
func (h *harm) service(k *key, end uint8) uint64 {
	return h.mix(h.address(k, end), markService|uint64(portOf(k, end))<<8|uint64(k.space)<<32)
}

// listener is the mark of the port that the segment comes from, on whatever address.
func (h *harm) listener(k *key) uint64 {
	return h.mix(uint64(portOf(k, 0))|uint64(k.space&^space6)<<16, markAnswer)
}

// address is an end of the segment without its port.
func (h *harm) address(k *key, end uint8) uint64 {
	if k.space < space6 {
		return uint64(uint32(k.words[0] >> (32 * end)))
	}
	return h.mix(k.words[2*end], k.words[2*end+1])
}

func (h *harm) mix(a, b uint64) uint64 {
	v := (a ^ b*h.seed) * 0x9e3779b97f4a7c15
	return (v ^ v>>29) * h.seed
}

func (m marks) set(hash uint64) []mark {
	at := int(hash>>40) & (len(m) - 1) &^ (harmWays - 1)
	return m[at : at+harmWays]
}

// of finds a mark that is not older than life, or makes a new one.
func (m marks) of(hash uint64, milli, life uint32) (one *mark, fresh bool) {
	b, tag := m.set(hash), uint32(hash)|1
	oldest := &b[0]
	for i := range b {
		if b[i].tag == tag {
			if milli-b[i].at <= life {
				return &b[i], false
			}
			oldest = &b[i]
			break
		}
		if milli-b[i].at > milli-oldest.at {
			oldest = &b[i]
		}
	}
	*oldest = mark{tag: tag, at: milli}
	return oldest, true
}

func (m marks) has(hash uint64, milli, life uint32) bool {
	b := m.set(hash)
	for i := range b {
		if b[i].tag == uint32(hash)|1 && milli-b[i].at <= life {
			return b[i].value != 0
		}
	}
	return false
}

// served marks a service of which the end of a connection shows that it said
// something: one that is only checked for its health serves nobody.
func (h *harm) served(s *segment, t *tracked, sender uint8) {
	said := s.ack
	if sender == 1 {
		said = s.seq
	}
	if t.bits&(hasISN<<1) == 0 || sentBytes(said-t.isn[1]-2) == 0 {
		return
	}
	m, _ := h.services.of(h.service(s.key, sender^1), s.milli, servingFor)
	m.at, m.value = s.milli, 1
}

// copied tells whether the same segment was seen a moment ago, in another
// namespace or behind a device that changed its TTL.
func (h *harm) copied(s *segment) bool {
	_, fresh := h.refusals.of(h.mix(s.hash()^uint64(s.flags), markCopy^uint64(s.seq)<<8^uint64(s.ack)<<32), s.milli, copiedFor)
	return !fresh
}

// leaves sorts a loss of a client that went away in the middle of an answer.
func (h *harm) leaves(s *segment, kind evidence.HarmKind, score uint8) (evidence.HarmKind, uint8) {
	const client, server = 0, 1 // ends of the segment
	service := h.service(s.key, server)
	if h.leftTogether(h.mix(h.mix(h.address(s.key, client), service), markLeft), s.milli) {
		return evidence.HarmDuplicate, scoreBenign
	}
	m, fresh := h.refusals.of(h.mix(service, markAbandoned), s.milli, abandonedFor)
	if m.at = s.milli; fresh {
		return evidence.HarmAbandoned, scoreAbandoned
	}
	return kind, score
}

// leftTogether tells whether the client left others of the service a moment ago, both
// by their hash: a page in a browser is left once, with up to perPage connections. More
// are the next one, so that a client which drops hundreds is not taken for a page.
func (h *harm) leftTogether(hash uint64, milli uint32) bool {
	m, fresh := h.refusals.of(hash, milli, leftFor)
	if fresh || m.value >= perPage {
		m.at, m.value = milli, 1
		return false
	}
	m.value++
	return true
}

// lookUp asks the marks about a connection that was refused.
func (h *harm) lookUp(s *segment, r *ended) {
	if r.duplicate || r.ignored || !r.opening || r.fromClient {
		return
	}
	const server, client = 0, 1 // ends of the segment
	service, from := h.service(s.key, server), h.address(s.key, client)
	r.serving = h.services.has(service, s.milli, servingFor)
	r.fallback = s.key.space >= space6 && h.services.has(h.listener(s.key), s.milli, fallbackFor)
	port := uint64(portOf(s.key, server))
	source, fresh := h.refusals.of(h.mix(from, markSource), s.milli, triesFor)
	if fresh {
		source.value = port << portSet
	}
	source.value |= 1 << (h.mix(port, markSource) >> 32 * portSet >> 32)
	r.scanner = bits.OnesCount64(source.value<<(64-portSet)) > scanPorts
	r.tries = 1
	if fresh {
		return // most clients of a scan come once: nothing more is kept of them
	}
	tries, fresh := h.refusals.of(h.mix(h.mix(from, service), markTries), s.milli, triesFor)
	if fresh && source.value>>portSet == port {
		tries.value = 1 // when the client was new
	}
	tries.value++
	r.tries = uint32(tries.value)
}
