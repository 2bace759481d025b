package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// This file judges flows that failed without a RST: what one side sent stayed
// unanswered until somebody gave up.

func (c *caseFile) judgeSilence(s *story) {
	o := &s.opinion
	o.claim.Origin, o.claim.Mechanism, o.claim.Layer = evidence.OriginNone, evidence.MechanismSilent, evidence.LayerNetwork
	if !s.sender.synced && s.other.syn != nil {
		c.lostSYN(s)
		return
	}
	if s.sender.synced && s.other.synced {
		c.lostData(s)
	}
	if o.claim.Sentence == "" && s.forsaken() {
		c.noAnswer(s)
	}
}

// forsaken tells whether a side closed with FIN, long after it had asked and without
// any answer.
func (s *story) forsaken() bool {
	d := &s.closing
	return s.rst == nil && d.at != nil && d.waiting && !d.exchanged && d.idle >= leastTimer
}

// noAnswer: the request arrived, for it was acknowledged, and nobody answered.
func (c *caseFile) noAnswer(s *story) {
	o, d := &s.opinion, &s.closing
	silent := s.flow.Server
	if d.by.addr == silent {
		silent = s.flow.Client
	}
	o.claim.Layer, o.claim.Confidence = evidence.LayerApplication, evidence.Likely
	o.add(packetFact("", fmt.Sprintf("%v sent %d bytes; %v acknowledged them and sent nothing in %s", d.by.addr,
		s.flow.ClientBytes+s.flow.ServerBytes, silent, seconds(d.idle)), s.lastData(d.at.Time), d.at))
	o.claim.Sentence = fmt.Sprintf("%v did not answer %v", silent, d.by.addr)
	o.claim.Settle = "what the process behind " + silent.String() + " did in that time"
}

// lostSYN: nobody answered the SYN.
func (c *caseFile) lostSYN(s *story) {
	o := &s.opinion
	n, first, last := 0, s.other.syn, s.other.last
	for _, g := range s.segments {
		if g.Src == s.other.addr && g.Flags.Has(evidence.SYN) {
			if n++; n == 1 {
				first = g
			}
		}
	}
	o.add(packetFact("RFC 6298 section 2", fmt.Sprintf("%v sent SYN %d times in %s and got no answer",
		s.other.addr, n, seconds(last.Time.Sub(first.Time))), first, last))
	o.claim.Confidence, o.claim.Settle = evidence.Likely, "a recorder on the host of "+s.sender.addr.String()
	where := first.direction()
	switch {
	case where == evidence.Received && first.passed():
		o.claim.Sentence = fmt.Sprintf("%v does not answer; this host passed the SYNs on", s.sender.addr)
		c.perhapsFull(s)
	case where == evidence.Received:
		c.swallowed(s)
	default:
		o.claim.Sentence = fmt.Sprintf("%v does not answer: the SYNs of %v are dropped", s.sender.addr, s.other.addr)
		c.perhapsFull(s)
	}
}

// swallowed: the SYNs came in here, and neither an answer nor the SYNs left.
func (c *caseFile) swallowed(s *story) {
	o := &s.opinion
	over, _ := c.moved("TcpExt.ListenOverflows")
	drops, _ := c.moved("TcpExt.ListenDrops")
	l, known := c.listener(s.sender.addr)
	_, counted := c.movedFor(s, "TcpExt.ListenDrops")
	switch f, full := c.conntrackFull(); {
	case c.filteredSYN(s, counted && over+drops == 0 && !full):
	case s.here() && over+drops > 0 && (l != nil || !known):
		o.claim.Mechanism, o.claim.Layer = evidence.MechanismQueueOverflow, evidence.LayerTransport
		o.claim.Sentence = fmt.Sprintf("this host's kernel drops SYNs to %v: the accept queue is full", s.sender.addr)
		o.add(counterFact(srcOverflow, "ListenOverflows grew by %d, ListenDrops by %d", over, drops))
		if l != nil && l.RecvQueue >= l.SendQueue {
			o.claim.Confidence = evidence.Proven
			o.add(socketFact("%s has %d connections in its accept queue of %d", listenerName(l), l.RecvQueue, l.SendQueue))
		}
	case full:
		o.claim.Mechanism = evidence.MechanismConntrackFull
		o.claim.Sentence = "this host drops SYNs of new connections: its connection-tracking table is full"
		o.claim.Confidence = evidence.Proven
		o.add(f...)
	default:
		s.swallowed = true
		o.claim.Sentence = fmt.Sprintf("SYNs to %v came in here and were neither answered nor sent on", s.sender.addr)
		if counted && over+drops == 0 {
			o.exclude("a full accept queue: neither ListenOverflows nor ListenDrops grew")
		} else {
			c.perhapsFull(s)
		}
		o.claim.Settle = settleFirewall
	}
}

// filteredSYN: this host's packet filter threw the SYNs away. The kernel says so, and
// where nftables did it, says that; a full connection table drops at the same hooks,
// so elsewhere a rule must fit. Without the kernel's word it must be a rule for that
// very port that threw something away.
func (c *caseFile) filteredSYN(s *story, noneFull bool) bool {
	o, syn := &s.opinion, s.other.syn
	r := c.matching(s, s.other.addr, s.sender.addr, func(r *evidence.Rule) bool { return r.Action == "drop" })
	drop := c.droppedAt(syn.Time, s.other.addr, s.sender.addr)
	switch {
	case drop != nil && drop.Location == inNftables:
		o.claim.Confidence = evidence.Proven
	case !noneFull || r == nil || !r.Counted || drop == nil && !strings.Contains(r.Text, "dport "):
		return false
	}
	if drop != nil {
		o.add(evidence.Finding{Kind: evidence.KindKernel, Source: "net/netfilter/core.c",
			Text: fmt.Sprintf("the packet filter threw the SYN away (%s in %s)", drop.Reason, drop.Location)})
	}
	s.filtered = true
	o.claim.Settle = settleFirewall
	o.claim.Sentence = fmt.Sprintf("a packet filter rule of this host%s drops SYNs to %v", s.where, s.sender.addr)
	if r != nil {
		o.add(ruleFact(r))
		o.claim.Sentence += fmt.Sprintf(": %s (handle %d)", r.Text, r.Handle)
	}
	return true
}

// inNftables is the function that drops what a rule of nftables says (nf_tables_core.c).
// What others drop is freed in nf_hook_slow, whoever it was.
const inNftables = "nft_do_chain"

// perhapsFull: a server that answers others and stays silent to some is more likely
// full than unreachable; one that answers nobody may be anything.
func (c *caseFile) perhapsFull(s *story) {
	o := &s.opinion
	a := c.answers[acceptorID{s.sender.addr, s.excerpt.Namespace}]
	if a == nil || a.Accepted == 0 {
		o.exclude("a full accept queue: %v accepted nobody in the window", s.sender.addr)
		return
	}
	o.claim.Mechanism, o.claim.Layer, o.claim.Confidence = evidence.MechanismQueueOverflow, evidence.LayerTransport, evidence.Likely
	o.claim.MechanismConfidence = evidence.Possible
	o.claim.Sentence += "; it accepts other connections, so its accept queue may be full"
	o.add(packetFact(srcOverflow, fmt.Sprintf("%v answered %s with SYN/ACK between %s and %s of the window",
		a.From, plural(a.Accepted, "SYN"), seconds(a.FirstAccepted.Sub(s.flow.First)), seconds(a.LastAccepted.Sub(s.flow.First)))))
	o.claim.Settle = "ListenOverflows and the accept queue (ss -ltn) on the host of " + s.sender.addr.String()
}

// conntrackFull tells whether this host's connection tracking dropped packets.
func (c *caseFile) conntrackFull() (facts []evidence.Finding, full bool) {
	ct, drops := c.fullestTable(), uint64(0)
	if ct == nil {
		return nil, false
	}
	if at, after := c.inc.At, c.inc.After; at != nil && at.Conntrack != nil && after != nil && after.Conntrack != nil {
		drops = after.Conntrack.Drop - min(at.Conntrack.Drop, after.Conntrack.Drop)
	}
	if c.inc.Series != nil {
		drops = max(drops, c.inc.Series.Growth("Conntrack.drop", c.window.From, c.inc.Closed))
	}
	if ct.Usage() < conntrackNear && drops == 0 {
		return nil, false
	}
	facts = append(facts, evidence.Finding{Kind: evidence.KindFirewall, Source: "net/netfilter/nf_conntrack_core.c", Text: fmt.Sprintf(
		"the connection-tracking table holds %d of %d entries (%.0f %%); it dropped %s in the window", ct.Count, ct.Max, 100*ct.Usage(), plural(int(drops), "packet"))})
	return facts, drops > 0 || ct.Usage() >= 1
}

// fullestTable is the connection-tracking table when it was fuller: it may have filled
// since the first look; nil if nobody looked.
func (c *caseFile) fullestTable() (ct *evidence.Conntrack) {
	for _, snap := range []*evidence.Snapshot{c.inc.At, c.inc.After} {
		if snap != nil && snap.Conntrack != nil && (ct == nil || snap.Conntrack.Usage() > ct.Usage()) {
			ct = snap.Conntrack
		}
	}
	return ct
}

// conntrackNear is the share from which a table counts as nearly full.
const conntrackNear = 0.95

// lostData: data was retransmitted and never acknowledged.
func (c *caseFile) lostData(s *story) {
	o := &s.opinion
	r := s.repeats()
	if r.n < silentRepeats {
		return
	}
	o.claim.Confidence, o.claim.Settle = evidence.Likely, "a capture on the host of "+r.to.String()+": do the segments arrive?"
	o.add(r.fact())
	o.claim.Sentence = fmt.Sprintf("%v sent the same data %d times and %v did not acknowledge it", r.from, r.n+1, r.to)
	if e := c.gaveUp(s); e != nil {
		o.claim.Confidence, o.claim.Process = evidence.Proven, e.Owner
		o.add(eventFact(e, fmt.Sprintf("the socket gave up with ETIMEDOUT %s after the first of them", seconds(e.Time.Sub(r.first.Time)))))
	}
	if r.blackhole() {
		o.claim.Mechanism = evidence.MechanismMTUBlackhole
		o.claim.Sentence = fmt.Sprintf("segments of %d bytes from %v vanish on the path while smaller ones pass: a smaller MTU without ICMP", r.size, r.from)
		o.claim.Settle = "the path MTU from " + r.from.Addr().String() + " (tracepath, ping with don't-fragment)"
	}
}

// gaveUp is the kernel's word that a socket of this host ended for want of an answer
// (ETIMEDOUT: retransmissions, TCP_USER_TIMEOUT or keepalive; tcp_write_err).
func (c *caseFile) gaveUp(s *story) *evidence.KernelEvent {
	ns := c.inode(s)
	for _, key := range []kernelKey{{ns, s.other.addr, s.sender.addr}, {0, s.other.addr, s.sender.addr}} {
		for _, e := range c.kernel.at[key] {
			if e.Kind == evidence.SocketError && e.Errno == errTimedOut && !e.Time.Before(s.flow.First) {
				return e
			}
		}
	}
	return nil
}

// errTimedOut is ETIMEDOUT of errno(3) on Linux.
const errTimedOut = 110

// repeated is data that one side sent again and again.
type repeated struct {
	from, to netip.AddrPort
	// n counts the retransmissions of the lowest segment that was never acknowledged.
	n           int
	first, last *seen
	size        uint32
	// small tells that smaller segments with payload were acknowledged.
	small bool
}

// repeats finds the data that was retransmitted most and never acknowledged.
func (s *story) repeats() repeated {
	var best repeated
	for _, e := range []*end{s.other, s.sender} {
		to := s.sender
		if e == s.sender {
			to = s.other
		}
		if r := s.repeatsOf(e, to); r.n > best.n {
			best = r
		}
	}
	return best
}

func (s *story) repeatsOf(e, to *end) repeated {
	r := repeated{from: e.addr, to: to.addr}
	times := map[uint32]int{}
	firsts := map[uint32]*seen{}
	for _, g := range s.segments {
		if g.Src != e.addr || g.PayloadBytes <= 1 {
			continue
		}
		if !after(g.Seq+g.PayloadBytes, to.acked) && to.hasAcked {
			r.small = r.small || g.PayloadBytes < fullSize
			continue
		}
		times[g.Seq]++
		if firsts[g.Seq] == nil {
			firsts[g.Seq] = g
		}
		if n := times[g.Seq] - 1; n > r.n {
			r.n, r.first, r.last, r.size = n, firsts[g.Seq], g, g.PayloadBytes
		}
	}
	return r
}

// fullSize is the payload from which a segment is one of those that an MTU stops:
// the least MTU that links are required to carry is 1280 (RFC 8200 section 5).
const fullSize = 1200

// blackhole tells whether only large segments vanish (RFC 2923 section 2.1).
func (r *repeated) blackhole() bool { return r.size >= fullSize && r.small }

// missing is data that never arrived, though some that follows it did.
type missing struct {
	from, to netip.AddrPort
	// bytes are missing before first, the first segment behind them that came.
	bytes uint32
	first *seen
	// lasted is how long they were missing.
	lasted time.Duration
	// large tells that full segments of the same side arrived.
	large bool
}

// leastMissing is how long data must be missing to be more than a loss that is soon
// repaired: the first timeout without any sample (RFC 6298 section 2).
const leastMissing = time.Second

// gap finds data that this host's end never got, by what it acknowledged; the
// recorder may have missed it, too, but then the kernel had not.
func (s *story) gap() (m missing, ok bool) {
	e, to := s.sender, s.other
	if s.flow.Local == e.addr {
		e, to = to, e
	}
	if s.flow.Local != to.addr || !to.hasAcked || !e.synced {
		return m, false
	}
	m.from, m.to = e.addr, to.addr
	for _, n := range s.segments {
		if n == s.rst {
			break
		}
		if n.Src != e.addr || n.PayloadBytes <= 1 || n.direction() != evidence.Received {
			continue
		}
		m.large = m.large || n.PayloadBytes >= fullSize
		if m.first == nil && after(n.Seq, to.acked) {
			m.first, m.bytes = n, n.Seq-to.acked
		}
	}
	if m.first != nil {
		m.lasted = s.time().Sub(m.first.Time)
	}
	return m, m.lasted >= leastMissing
}

func (m *missing) fact() evidence.Finding {
	return packetFact("RFC 9293 section 3.4", fmt.Sprintf("%d bytes of %v before sequence number %d never arrived in %s, though what follows them did",
		m.bytes, m.from, m.first.Seq, seconds(m.lasted)), m.first)
}

func (r *repeated) fact() evidence.Finding {
	return packetFact("RFC 6298 section 5", fmt.Sprintf("%v sent %d bytes from sequence number %d on %d times in %s without an acknowledgment",
		r.from, r.size, r.first.Seq, r.n+1, seconds(r.last.Time.Sub(r.first.Time))), r.first, r.last)
}

// text says it as a cause.
func (r *repeated) text() string {
	if r.blackhole() {
		return fmt.Sprintf("segments of %d bytes vanish on the path while smaller ones pass: a smaller MTU without ICMP", r.size)
	}
	return fmt.Sprintf("%v had retransmitted %d times without an acknowledgment", r.from, r.n)
}

func (m *missing) text() string {
	text := fmt.Sprintf("%d bytes of %v never arrived, though what follows them did", m.bytes, m.from)
	if m.bytes >= fullSize && !m.large {
		text += ": probably a smaller MTU without ICMP"
	}
	return text
}

// gaveUpAfter tells whether data was unanswered for long before t.
func (r *repeated) gaveUpAfter(t time.Time) bool {
	return r.n >= silentRepeats && r.last.Time.Before(t)
}
