package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// This file asks why a connection came to its end, and who has to act: the second
// and third step of the judgement.

// causeRules are tried in order; the first that applies decides. What the kernel
// says comes first, then what is harmless, then shapes, then the plain abort.
var causeRules = []func(*caseFile, *story) bool{
	byMechanism,
	stateLost,
	byLog,
	notAccepted,
	harmless,
	staleReuse,
	crashed,
	pathLost,
	byTimer,
	earlyAnswer,
	turnedAway,
	firstFlight,
	plainAbort,
}

func (c *caseFile) judgeCause(s *story) {
	if s.opinion.doubted || s.opinion.claim.Sentence == "" {
		return
	}
	for _, r := range causeRules {
		if r(c, s) {
			return
		}
	}
}

// byMechanism: mechanisms that leave one cause only.
func byMechanism(c *caseFile, s *story) bool {
	o := &s.opinion
	cl := &o.claim
	server := s.flow.Server
	switch m := cl.Mechanism; m {
	case evidence.MechanismInjected:
		o.blame(evidence.Network, cl.Confidence, evidence.CauseForged, cl.Confidence, "")
	case evidence.MechanismInjectedBlind:
		o.blame(evidence.Network, evidence.Possible, evidence.CauseForged, evidence.Possible, "")
	case evidence.MechanismRefusedFilter, evidence.MechanismRefusedRateLimit:
		p, pc := c.filterOwner(s)
		o.blame(p, pc.AtMost(cl.Confidence), evidence.CausePolicy, cl.Confidence, "a rule decided it")
	case evidence.MechanismRefused, evidence.MechanismRefusedListener:
		c.refusedCause(s, server)
	case evidence.MechanismQueueOverflow:
		p, pc := c.party(s, server)
		sure := firstOf(cl.MechanismConfidence, cl.Confidence)
		o.blame(p, pc.AtMost(sure), evidence.CauseBacklogFull, sure, "the application does not accept fast enough")
	case evidence.MechanismConntrackFull:
		p, pc := c.hostParty()
		o.blame(p, pc.AtMost(cl.Confidence), evidence.CauseConntrackFull, cl.Confidence, "")
	case evidence.MechanismMTUBlackhole:
		// No end drops by size what its MSS allowed (RFC 2923 section 2.1).
		o.blame(evidence.Network, evidence.Likely, evidence.CausePathDrop, cl.Confidence, "")
	case evidence.MechanismSilent:
		return c.silentCause(s)
	case evidence.MechanismProcessExit:
		p, pc := c.party(s, s.rst.Src)
		o.blame(p, pc.AtMost(cl.Confidence), evidence.CauseProcessDown, cl.Confidence, "")
	case evidence.MechanismListenerClosed:
		p, pc := c.party(s, s.rst.Src)
		o.blame(p, pc.AtMost(cl.Confidence), evidence.CauseProcessDown, evidence.Likely, "the service stopped or restarted")
	case evidence.MechanismMemory:
		p, pc := c.party(s, s.rst.Src)
		o.blame(p, pc.AtMost(cl.Confidence), evidence.CauseMemory, firstOf(cl.MechanismConfidence, cl.Confidence), "")
	case evidence.MechanismKeepalive:
		p, pc := c.party(s, s.rst.Dst)
		o.blame(p, pc.AtMost(evidence.Possible), evidence.CauseTimeout, firstOf(cl.MechanismConfidence, cl.Confidence), "the other side had stopped answering: its host or the path is down")
	default:
		return false
	}
	return true
}

// silentCause: nobody answered. A rule of this host, an application that took its
// time, or the path.
func (c *caseFile) silentCause(s *story) bool {
	o := &s.opinion
	switch {
	case s.forsaken():
		return false
	case s.filtered && c.elsewhere(s.sender.addr.Addr(), s):
		o.blame(evidence.Network, evidence.Likely, evidence.CausePolicy, o.claim.Confidence, "a rule decided it")
	case s.filtered:
		p, pc := c.party(s, s.sender.addr)
		o.blame(p, pc, evidence.CausePolicy, o.claim.Confidence, "a rule decided it")
	case s.swallowed: // by this host, which is on the path at most
		o.blame(evidence.Network, evidence.Possible, evidence.CausePathDrop, evidence.Possible, "")
	default:
		o.blame(evidence.Network, evidence.Possible, evidence.CausePathDrop, o.claim.Confidence, "")
	}
	return true
}

func firstOf(a, b evidence.Confidence) evidence.Confidence {
	if a != "" {
		return a
	}
	return b
}

// filterOwner is whose the packet filter is that refused.
func (c *caseFile) filterOwner(s *story) (evidence.Party, evidence.Confidence) {
	origin := s.opinion.claim.Origin
	switch {
	case origin.Middlebox(), origin == evidence.OriginLocalNetfilter && !s.flow.Local.IsValid():
		return evidence.Network, evidence.Proven
	case origin == evidence.OriginLocalNetfilter:
		return c.party(s, s.flow.Local)
	case origin == evidence.OriginForwarded && s.elsewhere:
		return evidence.Network, evidence.Likely
	}
	return c.party(s, s.rst.Src)
}

// refusedCause: nothing listens. One source that tries many ports scans.
func (c *caseFile) refusedCause(s *story, server netip.AddrPort) {
	o := &s.opinion
	cl := &o.claim
	if n := c.scanned[s.flow.Client.Addr()]; n >= scanPorts {
		cl.Benign = true
		p, pc := c.party(s, s.flow.Client)
		o.add(packetFact("", fmt.Sprintf("%v tried %d closed ports", s.flow.Client.Addr(), n), s.rst))
		o.blame(p, pc.AtMost(evidence.Likely), evidence.CauseScan, evidence.Likely, "harmless: a port scan")
		return
	}
	if cl.Origin.Middlebox() && cl.Origin != evidence.OriginMiddleboxFar {
		o.blame(evidence.Network, cl.Confidence, evidence.CausePolicy, evidence.Possible, "")
		return
	}
	p, pc := c.party(s, server)
	because := "the service is down, restarting or listens elsewhere"
	if e := s.event; e != nil && e.LastListener != nil {
		because = fmt.Sprintf("%s listened there before", processName(e.LastListener))
		o.add(eventFact(e, because))
	}
	o.blame(p, pc.AtMost(evidence.Likely).AtMost(cl.Confidence), evidence.CauseProcessDown, evidence.Likely.AtMost(cl.Confidence), because)
}

// stateLost: a host answers segments of a connection that it does not know and
// never closed.
func stateLost(c *caseFile, s *story) bool {
	o := &s.opinion
	cl := &o.claim
	if cl.Mechanism != evidence.MechanismNoSocket && cl.Mechanism != evidence.MechanismStateLost && cl.Mechanism != evidence.MechanismStateLostNAT {
		return false
	}
	if cl.Origin == evidence.OriginNAT || cl.Mechanism == evidence.MechanismStateLostNAT || cl.Origin.Middlebox() {
		o.blame(evidence.Network, cl.Confidence, evidence.CauseStateLost, firstOf(cl.MechanismConfidence, cl.Confidence),
			"its address translation or tracking state is gone"+c.silenceBefore(s))
		return true
	}
	if sure := c.mappingLost(s); sure != "" {
		cl.Mechanism = evidence.MechanismStateLostNAT
		o.blame(evidence.Network, cl.Confidence.AtMost(sure), evidence.CauseStateLost, cl.Confidence.AtMost(sure),
			"this host translates addresses, and its mapping for the segment is gone"+c.silenceBefore(s))
		return true
	}
	p, pc := c.party(s, s.rst.Src)
	limit := evidence.Likely
	if !s.sender.synced {
		limit = evidence.Possible // nothing shows that it ever knew the connection
	}
	if cl.Origin.Local() && s.event != nil && s.event.Grave != nil && s.event.Grave.Errno == errConnReset {
		o.blame(p, evidence.Possible, evidence.CauseStateLost, evidence.Possible, "the socket had been reset before: a RST that the other side did not send?")
		return true
	}
	if s.rst.Src == s.flow.Client {
		// A client that lives and never closed has most often been told to: by a RST
		// or a translation that is not seen from here.
		o.blame(evidence.Network, evidence.Possible, evidence.CauseUnknown, evidence.Uncertain,
			"it had opened the connection and knows it no more: a RST that only it saw, lost translation or a restart"+c.silenceBefore(s))
		return true
	}
	o.blame(p, pc.AtMost(limit), evidence.CauseStateLost, limit, "it forgot the connection: restart of the host, failover, or a RST that only it saw"+c.silenceBefore(s))
	return true
}

// mappingLost is how sure it is that this host answered for a connection whose
// addresses it had translated; empty if nothing says so.
func (c *caseFile) mappingLost(s *story) evidence.Confidence {
	role, known := c.role(s.rst.Src.Addr())
	switch {
	case !s.opinion.claim.Origin.Local() || known && role != evidence.Network:
		return ""
	case known, s.continued, s.routed(), c.translates():
		return evidence.Likely
	case c.translatesByRule(s) && c.neverHere(s):
		return evidence.Possible
	}
	return ""
}

// routed tells whether the segments under the RST's source address had come through
// this host, which answers in that name now: they left with a lower TTL than what
// this host sends itself (RFC 1812 section 5.3.1), as an application may ask for, too,
// but hardly so near to it.
func (s *story) routed() bool {
	last := s.sender.last
	if last == nil || last.Flags.Has(evidence.RST) {
		return false
	}
	hops := int(s.rst.TTL) - int(last.TTL)
	return hops > 0 && hops <= farthest && initialTTL(s.rst.TTL) == int(s.rst.TTL) && initialTTL(last.TTL) == int(s.rst.TTL)
}

// errConnReset is ECONNRESET of errno(3) on Linux.
const errConnReset = 104

// silenceBefore tells how long nothing was said before the trigger.
func (c *caseFile) silenceBefore(s *story) string {
	if s.trigger == nil {
		return ""
	}
	last := s.lastData(s.trigger.Time)
	if last == nil || s.trigger.Time.Sub(last.Time) < leastTimer {
		return ""
	}
	return fmt.Sprintf(", after %s of silence", seconds(s.trigger.Time.Sub(last.Time)))
}

// The bounds of a reuse that came too late.
const (
	staleIdle  = leastTimer
	staleReply = 100 * time.Millisecond
)

// staleReuse: the connection had served and lain idle; then a request crossed the
// closing by the server (RFC 9112 section 9.5).
func staleReuse(c *caseFile, s *story) bool {
	d := &s.closing
	request := s.request()
	if d.at == nil || request == nil || d.by.addr != s.flow.Server {
		return false
	}
	var before *seen
	answered := false
	for _, n := range s.segments {
		if n == request {
			break
		}
		if n.PayloadBytes > 0 {
			before = n
			answered = answered || n.Src == s.flow.Server
		}
	}
	if before == nil || !answered || before.Src != s.flow.Server || request.Time.Sub(before.Time) < max(staleIdle, 10*s.rtt()) {
		return false
	}
	if away := d.at.Time.Sub(request.Time); away > staleReply {
		return false
	}
	o := &s.opinion
	p, pc := c.party(s, s.flow.Server)
	idle := request.Time.Sub(before.Time)
	text := fmt.Sprintf("the connection was idle for %s, then a request crossed the server's closing", seconds(idle))
	o.add(packetFact("RFC 9112 section 9.5", text, before, request, d.at))
	c.decision(s, p, text)
	o.blame(p, pc.AtMost(evidence.Likely), evidence.CauseStaleReuse, evidence.Likely, text)
	return true
}

// request is the first segment of the client's last stretch of data.
func (s *story) request() *seen {
	var first *seen
	for _, n := range s.segments {
		switch {
		case n == s.rst:
			return first
		case n.PayloadBytes == 0:
		case n.Src == s.flow.Server:
			first = nil
		case first == nil:
			first = n
		}
	}
	return first
}

// pathLost: data was retransmitted without an answer before somebody gave up, or a
// part of it never arrived.
func pathLost(c *caseFile, s *story) bool {
	if s.rst == nil {
		return false
	}
	r := s.repeats()
	for _, v := range s.views { // what vanished on the path, only its sender saw
		if w := v.repeats(); w.n > r.n {
			r = w
		}
	}
	text := ""
	if m, ok := s.gap(); r.gaveUpAfter(s.time()) {
		s.opinion.add(r.fact())
		text = r.text()
	} else if ok {
		s.opinion.add(m.fact())
		text = m.text()
	} else {
		return false
	}
	o := &s.opinion
	if d := &s.closing; d.at != nil {
		p, _ := c.party(s, d.by.addr)
		c.decision(s, p, "gave up after "+seconds(d.idle))
	}
	o.blame(evidence.Network, evidence.Likely, evidence.CausePathDrop, evidence.Likely, text)
	return true
}

// The bounds of shapes.
const (
	earlyAnswerWithin = 20 * time.Millisecond
	sendingWithin     = 100 * time.Millisecond
	bodyBytes         = 4 << 10
	turnedAwayWithin  = 100 * time.Millisecond
	atOnce            = 3 * time.Millisecond
	flightBytes       = 4 << 10
)

// earlyAnswer: the server answered while the client was still sending, and closed:
// an error page and a refused body.
func earlyAnswer(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at == nil || d.at != s.rst || d.by.addr != s.flow.Server || s.sender.data == nil || s.other.data == nil {
		return false
	}
	answer, body := s.sender.data, s.other.data
	if s.rst.Time.Sub(answer.Time) > earlyAnswerWithin || answer.Time.Sub(body.Time) > sendingWithin || s.flow.ClientBytes < bodyBytes {
		return false
	}
	s.opinion.add(packetFact("RFC 9112 section 9.6", "the server answered in the middle of the client's data and reset at once", body, answer, s.rst))
	c.decided(s, "right after its answer, while the client was still sending: probably a limit or an error", evidence.CausePolicy, evidence.Likely)
	return true
}

// turnedAway: the server accepted the connection and dropped it before any request,
// or so soon after it that there was hardly more to it than its arrival.
func turnedAway(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at == nil || d.at != s.rst || d.by.addr != s.flow.Server || s.flow.ServerBytes > 0 || d.age > turnedAwayWithin || s.flow.ClientBytes > 0 && d.age > atOnce {
		return false
	}
	s.opinion.add(packetFact("", fmt.Sprintf("the server accepted the connection and reset it after %s without a word", seconds(d.age)), s.segments[0], s.rst))
	when := "before it read a request"
	if first := s.received(); first != nil {
		when = fmt.Sprintf("%s after the client's first data", seconds(s.rst.Time.Sub(first.Time)))
	}
	c.decided(s, when+": perhaps an access rule or a limit", evidence.CausePolicy, evidence.Possible)
	return true
}

// received is the first data of the RST's receiver that the sender had acknowledged,
// with the RST at last, and may have read; nil if there is none. What was unread was
// acknowledged, too.
func (s *story) received() *seen {
	if s.event != nil && s.event.Unread > 0 || s.opinion.claim.Mechanism == evidence.MechanismUnread {
		return nil
	}
	acked, known := s.sender.acked, s.sender.hasAcked
	if s.rst.Flags.Has(evidence.ACK) {
		acked, known = s.rst.Ack, true
	}
	for _, n := range s.segments {
		if n == s.rst || !known {
			return nil
		}
		if n.Src == s.other.addr && n.PayloadBytes > 0 && !after(n.Seq+n.PayloadBytes, acked) {
			return n
		}
	}
	return nil
}

// tlsPorts are those of TLS in the registry of service names (RFC 6335), and 8443.
var tlsPorts = []uint16{443, 465, 563, 636, 853, 989, 990, 993, 995, 5061, 5671, 6443, 6514, 6697, 8443, 8883, 9443}

// firstFlight: the server answered the client's first segments, which on a port of
// TLS are its hello, with RST and nothing else.
func firstFlight(c *caseFile, s *story) bool {
	d := &s.closing
	if d.at == nil || d.at != s.rst || d.by.addr != s.flow.Server || s.flow.ServerBytes > 0 ||
		s.flow.ClientBytes == 0 || s.flow.ClientBytes > flightBytes || d.idle > turnedAwayWithin || !slices.Contains(tlsPorts, s.flow.Server.Port()) {
		return false
	}
	s.opinion.add(packetFact("RFC 8446 section 4.1.1", fmt.Sprintf("the first %d bytes of the client were answered with RST after %s",
		s.flow.ClientBytes, seconds(d.idle)), s.other.data, s.rst))
	c.decided(s, "on the client's first words: perhaps TLS policy (name, version), or not TLS at all", evidence.CausePolicy, evidence.Possible)
	return true
}

// plainAbort: an application ended the connection, and nothing says that a timer or
// a limit made it.
func plainAbort(c *caseFile, s *story) bool {
	o := &s.opinion
	switch d := &s.closing; {
	case d.at != nil && d.at == s.rst:
		c.decided(s, c.stage(s), evidence.CauseAppAbort, evidence.Likely.AtMost(o.claim.Confidence))
	case d.at != nil:
		c.decided(s, c.stage(s), evidence.CauseAppAbort, evidence.Possible)
	case s.rst != nil:
		p, pc := c.party(s, s.rst.Src)
		o.blame(p, pc.AtMost(evidence.Possible).AtMost(o.claim.Confidence), evidence.CauseUnknown, evidence.Uncertain, "")
	}
	return true
}

// stage is how far the exchange had come at the closing.
func (c *caseFile) stage(s *story) string {
	d := &s.closing
	switch {
	case s.flow.ClientBytes+s.flow.ServerBytes == 0:
		return "before any data"
	case d.waiting && !d.exchanged:
		return fmt.Sprintf("while it waited for an answer, after %s", seconds(d.idle))
	case d.waiting:
		return fmt.Sprintf("%s after its last data", seconds(d.idle))
	}
	return fmt.Sprintf("%s after the other side's last data", seconds(d.idle))
}
