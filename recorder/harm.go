package recorder

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// harm scores resets. It looks at the segments that open and end connections
// alone; what lies between them is known from the states that chunks keep anyway:
// of the open chunk at a reset, of others as they were when sealed. Its memory is
// fixed, of which the oldest is used again.
type harm struct {
	memory []byte
	flows  []tracked
	marks  []mark
	seed   uint64
	tally  harmTally
	// changed tells that the tally is not as it was published.
	changed bool
	// off tells that a packet was scored when it was counted; blind that not all
	// packets are recorded: states are then behind, and not looked at, nor are those
	// that are older than trusted, in nanoseconds.
	off, blind bool
	trusted    int64
}

// tracked is one connection: a line of cache. Index 0 is the client, 1 the server.
type tracked struct {
	tag uint64 // 0: free
	isn [2]uint32
	// seq, next, ack and milli are those of each side's state when its chunk was sealed.
	seq, next, ack, milli [2]uint32
	opened, last          uint32 // milliseconds
	bits                  uint32
	place                 uint32 // among all
}

// The bits of tracked; those of the server are the client's shifted by one.
const (
	hasISN    = 1 << 0 // isn is known
	hasFIN    = 1 << 2
	hasState  = 1 << 4 // seq and so on are known
	hasPushed = 1 << 6
	hasOpened = 1 << 8 // opened is the time of the SYN
	hasReset  = 1 << 9
	hasClosed = 1 << 10 // its end is counted
	isLower   = 1 << 11 // the client is the lower end
	// The payload of the last words of the end that closed first, up to farewell.
	lastWords = 12
)

// mark remembers one fact about one thing for a while, both by hash.
type mark struct {
	tag, at uint32
	value   uint64
}

const (
	harmWays  = 4
	harmMarks = 8 << 10
	// harmShare of the memory is for tracked connections, within bounds.
	harmShare = 32
	leastHarm = 256 << 10
	mostHarm  = 4 << 20
)

// harmBytes is the memory that scoring takes of a budget, in bytes.
func harmBytes(memory int) int {
	n := min(max(memory/harmShare, leastHarm), mostHarm)
	return 1<<(bits.Len(uint(n))-1) + harmMarks*int(unsafe.Sizeof(mark{}))
}

// newHarm makes it for a budget in bytes. The seed is random: who sends packets must
// not choose what is forgotten.
func newHarm(memory int, seed uint64) (*harm, error) {
	n := harmBytes(memory)
	b, err := anonymous(n)
	if err != nil {
		return nil, err
	}
	flows := (n - harmMarks*int(unsafe.Sizeof(mark{}))) / int(unsafe.Sizeof(tracked{}))
	at := flows * int(unsafe.Sizeof(tracked{}))
	return &harm{
		memory: b, seed: seed | 1,
		// The memory is a page's multiple, zero, and holds no pointers.
		flows: unsafe.Slice((*tracked)(unsafe.Pointer(&b[0])), flows),
		marks: unsafe.Slice((*mark)(unsafe.Pointer(&b[at])), harmMarks),
	}, nil
}

func (h *harm) close() error { return unix.Munmap(h.memory) }

// distrust has states older than the time, in nanoseconds, not looked at: packets
// were lost.
func (h *harm) distrust(nanos int64) { h.trusted = nanos }

// find returns what is known of a connection, nil if nothing is. f is what the open
// chunk knows of it, nil if nothing: it remembers where to look first.
func (h *harm) find(tag uint64, f *flow) *tracked {
	if f != nil {
		if t := &h.flows[f.tracked]; t.tag == tag {
			return t
		}
	}
	b, _ := h.bucket(tag)
	for i := range b {
		if b[i].tag == tag {
			return &b[i]
		}
	}
	return nil
}

func (h *harm) bucket(tag uint64) (b []tracked, at uint32) {
	at = uint32(tag>>32) & uint32(len(h.flows)/harmWays-1) * harmWays
	return h.flows[at : at+harmWays : at+harmWays], at
}

// open makes room for a connection: of those in its place it takes one that has
// ended, or was never answered, or the one that was quiet longest. So a flood of
// SYNs takes nothing away from connections that live.
func (h *harm) open(tag uint64, milli uint32) *tracked {
	b, at := h.bucket(tag)
	victim, most := 0, uint64(0)
	for i := range b {
		if n := b[i].dispensable(milli); n > most {
			victim, most = i, n
		}
	}
	b[victim] = tracked{tag: tag, last: milli, place: at + uint32(victim)}
	return &b[victim]
}

func (t *tracked) dispensable(milli uint32) uint64 {
	n := uint64(milli-t.last)&0x7fffffff + 1
	switch {
	case t.tag == 0:
		n |= 1 << 34
	case t.bits&hasReset != 0 || t.bits&(hasFIN|hasFIN<<1) == hasFIN|hasFIN<<1:
		n |= 1 << 33
	case t.bits&(hasISN<<1|hasState<<1) == 0:
		n |= 1 << 32
	}
	return n
}

// side tells whether the source of a packet is the client, 0, or the server.
func (t *tracked) side(k *key) uint8 {
	if lower(k) == (t.bits&isLower != 0) {
		return 0
	}
	return 1
}

// lower orders the ends of a connection, it does not matter how: it tells whether
// the source is the lower one.
func lower(k *key) bool {
	a, b := k.words[0]&0xffffffff, k.words[0]>>32
	if k.space >= space6 {
		if a, b = k.words[0], k.words[2]; a == b {
			a, b = k.words[1], k.words[3]
		}
	}
	if a == b {
		a, b = uint64(portOf(k, 0)), uint64(portOf(k, 1))
	}
	return a < b
}

// setClient says which end of the packet is the client: 0 is the source.
func (t *tracked) setClient(k *key, end uint8) {
	if lower(k) == (end == 0) {
		t.bits |= isLower
	}
}

// guess takes the end with the higher port for the client.
func (t *tracked) guess(k *key) {
	end := uint8(0)
	if portOf(k, 0) < portOf(k, 1) {
		end = 1
	}
	t.setClient(k, end)
}

// segment is a control segment on its way into the score.
type segment struct {
	key      *key
	hash     uint64 // of addresses and ports, the same both ways
	seq, ack uint32
	payload  uint32 // 0 if it was not taken apart
	flags    uint8
	nanos    int64
	milli    uint32
	to       evidence.Direction
	// flow is what the open chunk knows of the connection before the segment, nil if
	// nothing; side is that of the sender in it.
	flow *flow
	side uint8
}

func (s *segment) tag() uint64 {
	return (s.hash^uint64(s.key.space)*0x9e3779b97f4a7c15)&^1 | 1 // never 0
}

// control takes a segment with SYN, FIN or RST.
func (h *harm) control(s *segment) {
	t := h.find(s.tag(), s.flow)
	switch {
	case s.flags&flagRST != 0:
		t = h.reset(s, t)
	case s.flags&flagSYN != 0:
		t = h.syn(s, t)
	default:
		t = h.fin(s, t)
	}
	if s.flow != nil && t != nil {
		s.flow.tracked = t.place
	}
	h.changed = true
}

func (h *harm) syn(s *segment, t *tracked) *tracked {
	answer := s.flags >> 4 & 1 // SYN with ACK: of the server
	isn := [2]uint32{s.seq, 0}
	if answer != 0 {
		isn = [2]uint32{s.ack - 1, s.seq}
	}
	if t != nil && t.bits&hasReset == 0 && t.bits&hasISN != 0 && t.isn[0] == isn[0] && t.side(s.key) == answer {
		t.last = s.milli // sent again, or the answer
	} else {
		if answer != 0 && t != nil && t.bits&hasISN != 0 {
			return t // to a SYN of another connection with the same ports
		}
		t = h.reopen(s, t)
		t.setClient(s.key, answer)
		t.isn, t.opened = isn, s.milli
		t.bits |= hasISN | hasOpened
	}
	if answer != 0 {
		t.isn[1] = s.seq
		t.bits |= hasISN << 1
		if s.key.space < space6 {
			m, _ := h.markOf(h.listener(s.key), s.milli, fallbackFor)
			m.at, m.value = s.milli, 1
		}
	}
	return t
}

// reopen is open, in the place of an earlier connection with the same ends.
func (h *harm) reopen(s *segment, t *tracked) *tracked {
	if t == nil {
		return h.open(s.tag(), s.milli)
	}
	*t = tracked{tag: t.tag, last: s.milli, place: t.place}
	return t
}

func (h *harm) fin(s *segment, t *tracked) *tracked {
	if t == nil {
		t = h.open(s.tag(), s.milli)
		t.guess(s.key)
	}
	me := t.side(s.key)
	if t.bits&(hasFIN|hasFIN<<1) == 0 {
		t.bits |= h.said(s, t, me) << lastWords
	}
	t.bits |= hasFIN << me
	t.last = s.milli
	h.served(s, t, me)
	h.countClose(t)
	return t
}

// said is the payload of the last words of an end that closes: those with the FIN or
// right before it. It is 0 if they are no farewell.
func (h *harm) said(s *segment, t *tracked, me uint8) uint32 {
	n := s.payload
	if n == 0 && !h.blind {
		if e := h.ends(s, t)[me]; e.ok && e.next == s.seq && positive(s.milli-e.milli) <= farewellTime {
			n = e.next - e.seq
		}
	}
	if n > farewell {
		return 0
	}
	return n
}

func (h *harm) countClose(t *tracked) {
	if t.bits&hasClosed == 0 {
		t.bits |= hasClosed
		h.tally.closes++
	}
}

// reset scores a RST.
func (h *harm) reset(s *segment, t *tracked) *tracked {
	known := t != nil && t.bits&(hasISN|hasISN<<1|hasState|hasState<<1|hasReset) != 0
	if t == nil {
		t = h.open(s.tag(), s.milli)
		t.guess(s.key)
	}
	me := t.side(s.key)
	r := ended{fromClient: me == 0, duplicate: t.bits&hasReset != 0 || h.copied(s)}
	var ends [2]reached
	if !h.blind {
		ends = h.ends(s, t)
	}
	r.known = known || ends[0].ok || ends[1].ok
	r.describe(s, t, &ends, me)
	h.lookUp(s, &r)
	kind, score := r.judge()
	if kind != evidence.HarmIgnored {
		h.served(s, t, me)
		t.bits |= hasReset
		t.last = s.milli
		h.countClose(t)
	}
	p := peersOf(s.key, me^1, s.peer(me))
	h.tally.add(kind, score, &p, s.milli)
	return t
}

// peer tells which end of the segment is not on this host, 0 for the source; the
// client if both or none are.
func (s *segment) peer(sender uint8) uint8 {
	switch s.to {
	case evidence.Sent:
		return 1
	case evidence.Received:
		return 0
	}
	return sender
}

// reached is how far one end had come before the reset.
type reached struct {
	ok             bool
	seq, next, ack uint32
	milli          uint32
	pushed         bool
}

// ends are the client and the server.
func (h *harm) ends(s *segment, t *tracked) (ends [2]reached) {
	me := t.side(s.key)
	for i := range ends {
		ends[i] = t.end(uint8(i))
		if s.flow == nil {
			continue
		}
		if st := &s.flow.sides[s.side^me^uint8(i)]; st.seen {
			ends[i] = reached{true, st.seq, st.next, st.ack, st.milli, st.dataFlags&flagPSH != 0}
		}
	}
	for i := range ends {
		ends[i].ok = ends[i].ok && t.after(ends[i].milli) && positive(s.milli-ends[i].milli) <= (s.nanos-h.trusted)/1e6
	}
	return ends
}

func (t *tracked) end(i uint8) reached {
	return reached{t.bits&(hasState<<i) != 0, t.seq[i], t.next[i], t.ack[i], t.milli[i], t.bits&(hasPushed<<i) != 0}
}

// carry keeps what an open chunk knows of its connections, before it is forgotten.
func (h *harm) carry(e *encoder) {
	if h.blind {
		return
	}
	for i := range e.flows {
		f := &e.flows[i]
		s := segment{key: &f.key, hash: e.hash(&f.key)}
		t := h.find(s.tag(), f)
		if t == nil {
			if !f.sides[0].seen || !f.sides[1].seen {
				continue
			}
			t = h.open(s.tag(), f.sides[0].milli)
			t.guess(&f.key)
		}
		if t.bits&hasReset != 0 {
			continue
		}
		client := t.side(&f.key)
		t.keep(client, &f.sides[0])
		t.keep(client^1, &f.sides[1])
	}
}

func (t *tracked) keep(i uint8, st *state) {
	if !st.seen || !t.after(st.milli) {
		return
	}
	t.seq[i], t.next[i], t.ack[i], t.milli[i] = st.seq, st.next, st.ack, st.milli
	t.bits = t.bits&^(hasPushed<<i) | hasState<<i
	if st.dataFlags&flagPSH != 0 {
		t.bits |= hasPushed << i
	}
	if int32(st.milli-t.last) > 0 {
		t.last = st.milli
	}
}

// after tells that a state is not of an earlier connection with the same ends: a
// chunk does not live longer than a few hours.
func (t *tracked) after(milli uint32) bool {
	const hours = 1 << 24 // milliseconds
	return t.bits&hasOpened == 0 || t.opened-milli-1 >= hours
}

// describe says what the numbers mean.
func (r *ended) describe(s *segment, t *tracked, ends *[2]reached, me uint8) {
	peer := me ^ 1
	r.opening = t.bits&hasOpened != 0 && t.bits&(hasISN<<1) == 0 && !ends[1].ok
	r.age, r.idle = s.milli-t.opened, 0
	if t.bits&hasOpened == 0 {
		r.age = 1 << 31
	}
	// What each end has of the other: the reset itself may say it, too.
	acked := [2]uint32{ends[0].ack, ends[1].ack}
	has := [2]bool{ends[0].ok, ends[1].ok}
	if s.flags&flagACK != 0 && (!has[me] || int32(s.ack-acked[me]) > 0) {
		acked[me], has[me] = s.ack, true
	}
	for i := range uint8(2) {
		r.fin[i] = t.bits&(hasFIN<<i) != 0
		r.bytes[i], r.lost[i] = t.moved(i, &ends[i], r.fin[i], acked[i^1], has[i^1])
		r.pushed[i] = ends[i].pushed
		// What the other end said that the last segment did not know of is an answer.
		r.pending[i] = ends[i].ok && ends[i].next != ends[i].seq && !r.fin[i] && r.bytes[i] != 0 &&
			(!ends[i^1].ok || ends[i^1].next == ends[i].ack)
	}
	r.goodbyes = goodbyes(&ends[0], &ends[1], s.milli)
	r.lastWords = t.bits >> lastWords & (2*farewell - 1)
	r.idle = idleOf(s, ends)
	if r.opening && r.fromClient && r.bytes[0] > 0 {
		r.known = false // the server's side passes elsewhere
	}
	if r.bytes[me] < 0 && t.bits&(hasISN<<me) != 0 {
		r.bytes[me] = sentBytes(s.seq - t.isn[me] - 1)
	}
	if ends[me].ok && ends[peer].ok && !r.opening {
		r.unheard = outstanding(&ends[peer], ends[me].ack, r.fin[peer])
		// The sender's last segment may have been a probe, one byte back
		// (net/ipv4/tcp_output.c tcp_xmit_probe_skb): what was confirmed is exact.
		r.ignored = int32(s.seq-ends[peer].ack) < 0 || s.seq != ends[peer].ack && int32(s.seq-ends[me].next) > 0
	}
}

// idleOf is how long the connection had been silent, in milliseconds; 0 if that is
// not known.
func idleOf(s *segment, ends *[2]reached) (idle uint32) {
	known := false
	for _, e := range ends {
		if n := uint32(positive(s.milli - e.milli)); e.ok && (!known || n < idle) {
			idle, known = n, true
		}
	}
	return idle
}

// goodbyes tells that a client said as much as the server right before it, each an
// alert of TLS by its size, and nothing since: the server was about to close.
func goodbyes(client, server *reached, milli uint32) bool {
	n := client.next - client.seq
	return client.ok && server.ok && n >= leastAlert && n <= mostAlert && n == server.next-server.seq &&
		client.ack == server.next && client.milli-server.milli <= farewellTime && milli-client.milli <= farewellTime
}

// moved is how much payload an end sent, -1 if that is not known, and how much of
// it the other end does not have. acked is valid if has is set.
func (t *tracked) moved(i uint8, e *reached, fin bool, acked uint32, has bool) (sent int64, lost uint32) {
	first, known := t.isn[i]+1, t.bits&(hasISN<<i) != 0
	phantom := uint32(0)
	if fin {
		phantom = 1
	}
	if !e.ok {
		if !known || !has {
			return -1, 0
		}
		return sentBytes(acked - first - phantom), 0
	}
	sent = -1
	if known {
		sent = sentBytes(e.next - first - phantom)
		if acked == 0 || sentBytes(acked-first) == 0 {
			acked = first // the SYN at most
		}
	}
	if has {
		lost = outstanding(e, acked, fin)
	}
	return sent, lost
}

// outstanding is the payload that an end has sent beyond an acknowledgment.
func outstanding(e *reached, acked uint32, fin bool) uint32 {
	n := positive(e.next - acked)
	if fin {
		n--
	}
	return uint32(max(n, 0))
}

// sentBytes is how far a sequence number is behind the first: modulo 4 GiB, and 0 if
// it is a little before it, as that of a keep-alive probe is.
func sentBytes(d uint32) int64 {
	const little = 1 << 16
	if -d < little {
		return 0
	}
	return int64(d)
}

// positive is a difference of sequence numbers, 0 if it is negative.
func positive(d uint32) int64 { return max(int64(int32(d)), 0) }

// The things that are marked.
const (
	markService = iota + 1 // a port that serves: when it did last
	markSource             // a client: the ports that it found closed, as a set
	markTries              // a client and a port: how often it was refused
	markCopy               // a reset, to know it again in another namespace
	markAnswer             // a port that accepted a connection over IPv4
)

const (
	servingFor = 3600_000 // milliseconds
	triesFor   = 10_000
	copiedFor  = 1000
	// fallbackFor is how long after an answer over IPv4 nobody misses one over IPv6.
	fallbackFor = 5000
	// scanPorts is how many ports make a scan.
	scanPorts = 10
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

// markOf finds a mark that is not older than life, or makes a new one.
func (h *harm) markOf(hash uint64, milli, life uint32) (m *mark, fresh bool) {
	at := hash >> 40 & (harmMarks/harmWays - 1) * harmWays
	b := h.marks[at : at+harmWays]
	tag := uint32(hash) | 1
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
	m, _ := h.markOf(h.service(s.key, sender^1), s.milli, servingFor)
	m.at, m.value = s.milli, 1
}

// copied tells whether the same segment was seen a moment ago, in another
// namespace or behind a device that changed its TTL.
func (h *harm) copied(s *segment) bool {
	_, fresh := h.markOf(h.mix(s.hash^uint64(s.flags), markCopy^uint64(s.seq)<<8^uint64(s.ack)<<32), s.milli, copiedFor)
	return !fresh
}

// lookUp asks the marks about a connection that was refused.
func (h *harm) lookUp(s *segment, r *ended) {
	if r.duplicate || r.ignored || !r.opening || r.fromClient {
		return
	}
	const server, client = 0, 1 // ends of the segment
	r.serving = h.has(h.service(s.key, server), s.milli, servingFor)
	r.fallback = s.key.space >= space6 && h.has(h.listener(s.key), s.milli, fallbackFor)
	source, _ := h.markOf(h.mix(h.address(s.key, client), markSource), s.milli, triesFor)
	source.value |= 1 << (h.mix(uint64(portOf(s.key, server)), markSource) >> 58)
	r.scanner = bits.OnesCount64(source.value) > scanPorts
	hash := h.mix(h.address(s.key, client), h.service(s.key, server))
	tries, _ := h.markOf(h.mix(hash, markTries), s.milli, triesFor)
	tries.value++
	r.tries = uint32(tries.value)
}

func (h *harm) has(hash uint64, milli, life uint32) bool {
	at := hash >> 40 & (harmMarks/harmWays - 1) * harmWays
	for _, m := range h.marks[at : at+harmWays] {
		if m.tag == uint32(hash)|1 && milli-m.at <= life {
			return m.value != 0
		}
	}
	return false
}

// bare scores a control segment that is not taken apart, or that is counted before
// it is stored. Of other packets it does nothing. reset is what Cut says.
func (h *harm) bare(e *encoder, m *Meta, b []byte, reset bool) {
	at, _ := plain(b)
	if at == 0 {
		if reset {
			h.tally.unscored++
			h.changed = true
		}
		return
	}
	t := b[at:]
	if t[13]&flagsControl == 0 {
		return
	}
	k := keyOf(b, at, m.Path.Namespace)
	s := segment{
		key: &k, hash: e.hash(&k), seq: binary.BigEndian.Uint32(t[4:]), ack: binary.BigEndian.Uint32(t[8:]),
		flags: t[13], nanos: m.Nanos, milli: uint32(m.Nanos / 1e6), to: m.Path.Direction,
	}
	if !h.blind {
		s.flow = e.find(&k)
		s.side = e.side
	}
	h.control(&s)
}

// taken scores a control segment that the encoder took apart, before it learns it.
func (h *harm) taken(e *encoder, f *flow, m *Meta, milli uint32) {
	p := &e.fields
	h.control(&segment{
		key: &p.key, hash: e.hash(&p.key), seq: p.seq, ack: p.ack,
		payload: p.payload, flags: p.flags, nanos: m.Nanos, milli: milli, to: m.Path.Direction, flow: f, side: e.side,
	})
}

// keyOf is the key of a packet of which the TCP header is at the offset; see plain.
func keyOf(b []byte, at int, namespace uint16) key {
	k := key{ports: binary.LittleEndian.Uint32(b[at:]), space: uint32(namespace)}
	if at == ip4Head {
		k.words[0] = binary.LittleEndian.Uint64(b[12:])
		return k
	}
	k.space |= space6
	for i := range k.words {
		k.words[i] = binary.LittleEndian.Uint64(b[8+8*i:])
	}
	return k
}
