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
	memory             []byte
	flows              []tracked
	services, refusals marks
	seed               uint64
	tally              harmTally
	// elsewhere tells that other network namespaces than the recorder's are recorded.
	elsewhere bool
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

const (
	harmWays = 4
	// harmShare of the memory is for tracked connections, within bounds.
	harmShare = 32
	leastHarm = 256 << 10
	mostHarm  = 4 << 20
)

const (
	trackedBytes = int(unsafe.Sizeof(tracked{}))
	markBytes    = int(unsafe.Sizeof(mark{}))
)

// harmFlows is how many connections are tracked, a power of two.
func harmFlows(memory int) int {
	n := min(max(memory/harmShare, leastHarm), mostHarm)
	return 1 << (bits.Len(uint(n)) - 1) / trackedBytes
}

// harmBytes is the memory that scoring takes of a budget, in bytes.
func harmBytes(memory int) int {
	return harmFlows(memory)*trackedBytes + (harmServices+harmRefusals)*markBytes
}

// newHarm makes it for a budget in bytes. The seed is random: who sends packets must
// not choose what is forgotten.
func newHarm(memory int, seed uint64) (*harm, error) {
	b, err := anonymous(harmBytes(memory))
	if err != nil {
		return nil, err
	}
	flows := harmFlows(memory)
	services := flows * trackedBytes
	refusals := services + harmServices*markBytes
	return &harm{
		memory: b, seed: seed | 1,
		// The memory is a page's multiple, zero, and holds no pointers.
		flows:    unsafe.Slice((*tracked)(unsafe.Pointer(&b[0])), flows),
		services: unsafe.Slice((*mark)(unsafe.Pointer(&b[services])), harmServices),
		refusals: unsafe.Slice((*mark)(unsafe.Pointer(&b[refusals])), harmRefusals),
	}, nil
}

func (h *harm) close() error { return unix.Munmap(h.memory) }

// distrust has states older than the time, in nanoseconds, not looked at: packets
// were lost.
func (h *harm) distrust(nanos int64) { h.trusted = nanos }

// find returns what is known of a connection, nil if nothing is. f is what the open
// chunk knows of it, nil if nothing: it remembers where to look first.
func (h *harm) find(tag uint64, f *flow) *tracked {
	if f != nil && f.tracked < uint32(len(h.flows)) {
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
	hasher   *encoder
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

// hash is of addresses and ports, the same both ways.
func (s *segment) hash() uint64 { return s.hasher.hash(s.key) }

func (s *segment) tag() uint64 { return tagOf(s.hash(), s.key) }

// tagOf names a connection by its hash, never 0.
func tagOf(hash uint64, k *key) uint64 { return hash ^ uint64(k.space)*0x9e3779b97f4a7c15 | 1 }

// control takes a segment with SYN, FIN or RST.
func (h *harm) control(s *segment) {
	h.changed = true
	h.elsewhere = h.elsewhere || uint16(s.key.space) != 0
	t, done := h.early(s)
	if done {
		return
	}
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
			m, _ := h.services.of(h.listener(s.key), s.milli, fallbackFor)
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
	if h.count(s, &r, me^1) == evidence.HarmIgnored {
		t.remember(me, &ends[me])
		return t
	}
	h.served(s, t, me)
	t.bits |= hasReset
	t.last = s.milli
	h.countClose(t)
	return t
}

// count adds a reset to the tally. server is the end that serves, 0 for the source.
func (h *harm) count(s *segment, r *ended, server uint8) evidence.HarmKind {
	kind, score := r.judge()
	if (kind == evidence.HarmDataLost || kind == evidence.HarmMidstream) && r.left() {
		kind, score = h.leaves(s, kind, score)
	}
	p := peersOf(s.key, server, s.peer(server^1))
	h.tally.add(kind, score, &p, s.milli)
	return kind
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
	// data is the payload of the last segment that had any, as far as that is known.
	data   uint32
	pushed bool
}

// ends are the client and the server.
func (h *harm) ends(s *segment, t *tracked) (ends [2]reached) {
	me := t.side(s.key)
	for i := range ends {
		ends[i] = t.end(uint8(i))
		if s.flow == nil {
			continue
		}
		st := &s.flow.sides[s.side^me^uint8(i)]
		if ignored := st.flags&flagRST != 0 && ends[i].ok; st.seen && !ignored {
			ends[i] = reached{true, st.seq, st.next, st.ack, st.milli, st.data, st.dataFlags&flagPSH != 0}
		}
	}
	for i := range ends {
		ends[i].ok = ends[i].ok && t.after(ends[i].milli) && positive(s.milli-ends[i].milli) <= (s.nanos-h.trusted)/1e6
	}
	return ends
}

func (t *tracked) end(i uint8) reached {
	return reached{t.bits&(hasState<<i) != 0, t.seq[i], t.next[i], t.ack[i], t.milli[i], t.next[i] - t.seq[i], t.bits&(hasPushed<<i) != 0}
}

// remember keeps how far an end had come before a reset that is ignored: the states of
// chunks are those of the last segment, whatever it was.
func (t *tracked) remember(i uint8, e *reached) {
	if !e.ok {
		return
	}
	t.seq[i], t.next[i], t.ack[i], t.milli[i] = e.seq, e.next, e.ack, e.milli
	t.bits = t.bits&^(hasPushed<<i) | hasState<<i
	if e.pushed {
		t.bits |= hasPushed << i
	}
}

// carry keeps what an open chunk knows of its connections, before it is forgotten.
func (h *harm) carry(e *encoder) {
	scan := len(e.flows) > maxFlows/4 // what it found closed is not worth the memory
	for i := range e.flows {
		f := &e.flows[i]
		early, refused := f.tracked >= flowRefused, f.tracked == flowRefused
		if scan && refused || h.blind && !early {
			continue
		}
		tag := tagOf(e.hash(&f.key), &f.key)
		t := h.find(tag, f)
		if early {
			t = h.adopt(e, f, t)
		}
		if refused {
			t.bits |= hasReset | hasClosed
		}
		if !h.blind {
			h.carryFlow(f, t, tag)
		}
	}
}

// carryFlow keeps the states of a flow, where t is what is known of the connection, nil
// if nothing is.
func (h *harm) carryFlow(f *flow, t *tracked, tag uint64) {
	a, b := &f.sides[0], &f.sides[1]
	if t == nil {
		if !a.seen || !b.seen || (a.flags|b.flags)&flagRST != 0 {
			return
		}
		t = h.open(tag, a.milli)
		t.guess(&f.key)
	}
	if t.bits&hasReset != 0 {
		return
	}
	client := t.side(&f.key)
	t.keep(client, a)
	t.keep(client^1, b)
}

func (t *tracked) keep(i uint8, st *state) {
	ignored := st.flags&flagRST != 0 && t.bits&(hasState<<i) != 0
	if !st.seen || ignored || !t.after(st.milli) {
		return
	}
	t.remember(i, &reached{true, st.seq, st.next, st.ack, st.milli, st.data, st.dataFlags&flagPSH != 0})
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
// alert of TLS by its size, and that nothing came since but the server's confirmation:
// it was about to close.
func goodbyes(client, server *reached, milli uint32) bool {
	n := client.next - client.seq
	if !client.ok || !server.ok || n < leastAlert || n > mostAlert || n != server.data || client.ack != server.next {
		return false
	}
	confirmed := server.next == server.seq && server.ack == client.next
	prompt := server.next-server.seq == n && client.milli-server.milli <= farewellTime
	return (confirmed || prompt) && milli-client.milli <= goodbyeTime
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
		key: &k, hasher: e, seq: binary.BigEndian.Uint32(t[4:]), ack: binary.BigEndian.Uint32(t[8:]),
		flags: t[13], nanos: m.Nanos, milli: uint32(m.Nanos / 1e6), to: m.Path.Direction,
	}
	s.flow = e.find(&k)
	s.side = e.side
	h.control(&s)
}

// taken scores a control segment that the encoder took apart, before it learns it.
func (h *harm) taken(e *encoder, f *flow, m *Meta, milli uint32) {
	p := &e.fields
	h.control(&segment{
		key: &p.key, hasher: e, seq: p.seq, ack: p.ack,
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
