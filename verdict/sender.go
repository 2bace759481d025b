package verdict

import (
	"fmt"

	"tcpcoroner/evidence"
)

// This file asks where a RST came from. How it was made is asked in header.go.

// judgeSender is the first step of the judgement of one flow.
func (c *caseFile) judgeSender(s *story) {
	if s.rst == nil {
		c.judgeSilence(s)
		return
	}
	s.opinion.add(s.sawRST())
	if f, ok := s.diagnosis(); ok {
		s.opinion.add(f)
	}
	if s.rst.deduced() {
		s.oriented()
	}
	for _, r := range senderRules {
		if r(c, s) {
			return
		}
	}
}

// senderRules are tried in order; the first that applies decides. What tells the
// sender for certain comes first, and doubt before what names a party.
var senderRules = []func(*caseFile, *story) bool{
	unknownDirection,
	forwarded,
	byKernelEvent,
	notOwnAddress,
	byFilter,
	ignored,
	forged,
	fromHere,
	fromPeer,
}

// oriented notes that an address told which way the RST went. Without the kernel's
// word that is not beyond doubt: who sends packets in another's name may have any.
func (s *story) oriented() {
	own := s.rst.Dst
	if s.direction() == evidence.Sent {
		own = s.rst.Src
	}
	s.opinion.add(packetFact("net/ipv4/fib_frontend.c", fmt.Sprintf("%s does not tell sent from received; %v is an address of this host",
		s.rst.sightings[0].iface, own.Addr()), s.rst))
	if s.event == nil && s.taken == nil {
		s.opinion.limit(evidence.Likely)
	}
}

// unknownDirection: on devices without a link layer the kernel's packet type does not
// tell sent from received, nor do the addresses of what is only routed.
func unknownDirection(_ *caseFile, s *story) bool {
	d := s.direction()
	if d != evidence.DirectionUnknown && d != evidence.Elsewhere {
		return false
	}
	why := "its interface does not tell sent from received"
	if d == evidence.Elsewhere {
		why = "it was addressed to another host"
	}
	o := &s.opinion
	o.doubted = true
	o.claim.Sentence = fmt.Sprintf("a RST from %v to %v was seen; %s", s.rst.Src, s.rst.Dst, why)
	o.claim.Settle = "a capture on an interface with a link layer, on the host of either end"
	return true
}

// forwarded: the same RST came in and left again, perhaps under another address
// (NAT leaves sequence numbers alone). How it was made can be read all the same.
func forwarded(c *caseFile, s *story) bool {
	passing := !s.forwarded && s.direction() == evidence.Received && s.transit()
	if !s.forwarded && !passing {
		return false
	}
	o := &s.opinion
	text, from := fmt.Sprintf("the RST from %v was received and sent on: this host only routed it", s.rst.Src), s.rst.Src
	o.claim.Confidence = evidence.Likely
	switch {
	case s.as != nil:
		text = fmt.Sprintf("the RST %v > %v left as %v > %v: this host translated and routed it",
			s.as.src, s.as.dst, s.left.src, s.left.dst)
		from = s.as.src
	case passing:
		text = fmt.Sprintf("a RST from %v came in for %v, whose flow this host routes; it was not seen leaving", s.rst.Src, s.rst.Dst)
		o.claim.Confidence = evidence.Possible
	}
	o.add(packetFact("net/ipv4/ip_forward.c", text, s.rst))
	o.claim.Origin, o.claim.Layer, o.claim.Sentence = evidence.OriginForwarded, evidence.LayerNetwork, text
	o.claim.Settle = fmt.Sprintf("a recorder on the host of %v", from)
	m := c.making(s)
	o.claim.Mechanism, o.claim.MechanismConfidence, o.claim.Trigger = m.mechanism, m.confidence.AtMost(o.claim.Confidence), m.trigger
	f := c.misfits(s)
	s.elsewhere = f.hops != 0
	if f.score >= forgedScore {
		o.claim.Mechanism, o.claim.MechanismConfidence = evidence.MechanismInjected, evidence.Likely
		o.add(f.facts...)
		return true
	}
	o.add(m.facts...)
	return true
}

// byKernelEvent: the kernel itself says that it sent the RST, and why. Two kinds of
// evidence agree if the header has the form that the reason makes.
func byKernelEvent(c *caseFile, s *story) bool {
	e := s.event
	if e == nil {
		return false
	}
	o, m := &s.opinion, c.making(s)
	if e.Kind == evidence.FirewallReject {
		c.filtered(s, m, eventFact(e, "a packet filter rule made the RST"), evidence.Proven)
		return true
	}
	r := c.readEvent(s, e, kernelReason{originHere(m), m.mechanism, m.text})
	o.claim.Origin, o.claim.Mechanism, o.claim.Confidence = r.origin, r.mechanism, evidence.Proven
	o.claim.Layer, o.claim.Process, o.claim.Trigger = layerOf(r.mechanism), doer(e, r.mechanism), m.trigger
	if e.Reason == "" { // read from the socket's fields
		o.claim.MechanismConfidence = evidence.Likely
	}
	o.add(eventFact(e, r.text))
	c.contradict(s, m, r)
	o.add(m.facts...)
	if o.claim.Process != nil {
		s.flow.Owner, s.flow.OwnerSource = o.claim.Process, "the kernel's event of the reset"
	}
	o.claim.Sentence = c.sentenceHere(s, r)
	o.claim.Settle = settleOwner
	o.exclude("a packet filter or raw socket: the kernel's TCP says that it sent the RST")
	return true
}

// contradict notes where the header has not the form that the kernel's reason
// makes: an open socket's RST acknowledges, an answer to a stray segment does not.
func (c *caseFile) contradict(s *story, m making, r kernelReason) {
	active := r.mechanism.Family() == evidence.MechanismActiveAbort
	if active == s.rst.Flags.Has(evidence.ACK) || m.mechanism.Family() == evidence.MechanismRefused || s.rst.Seq == 0 {
		return
	}
	f := packetFact(srcRFCReset, fmt.Sprintf("the header (%s) is not that of a RST whose reason is %s", s.rst.Flags, r.mechanism), s.rst)
	f.Against = true
	s.opinion.add(f)
}

// originHere is who on this host makes RSTs of a form.
func originHere(m making) evidence.Origin {
	switch {
	case m.mechanism.Family() == evidence.MechanismActiveAbort:
		return evidence.OriginLocalProcess
	case m.mechanism == evidence.MechanismUnknown:
		return evidence.OriginLocalHost
	}
	return evidence.OriginLocalKernel
}

// notOwnAddress: a RST that left this host under an address whose packets come in
// from the network. TCP answers for the host's own addresses only (tcp_v4_send_reset
// refuses others): a packet filter or a program made it.
func notOwnAddress(c *caseFile, s *story) bool {
	if !s.local() || s.direction() != evidence.Sent || !c.foreign(s.rst.Src.Addr(), s.excerpt.Namespace) {
		return false
	}
	o, m := &s.opinion, c.making(s)
	text := fmt.Sprintf("the RST left this host and did not come in; packets of %v come in from the network", s.rst.Src.Addr())
	fact := packetFact(srcPassive, text, s.rst)
	o.add(m.facts...)
	o.exclude("this host's TCP: it sends for its own addresses only")
	if s.filterLike() {
		confidence := evidence.Likely
		if c.rejectRule(s) != nil || c.dropped(s) != nil {
			confidence = evidence.Proven
		}
		c.filtered(s, m, fact, confidence)
		return true
	}
	o.add(fact)
	o.claim.Origin, o.claim.Mechanism, o.claim.Layer = evidence.OriginLocalOther, evidence.MechanismInjected, evidence.LayerNetwork
	o.claim.Confidence = evidence.Likely
	o.claim.Sentence = fmt.Sprintf("a program on this host%s forged the RST in the name of %v", s.where, s.rst.Src)
	o.claim.Settle = "which process holds a packet or raw socket, or a tc or XDP program, on this host"
	return true
}

// filterLike tells whether the header is one that nf_send_reset makes: the default
// TTL, no IP ID, don't fragment, TOS 0 and window 0 (nf_reject_ipv4.c).
func (s *story) filterLike() bool {
	r := s.rst
	return r.TTL == uint8(initialTTL(r.TTL)) && r.TTL != 128 && r.IPID == 0 && r.Window == 0 && r.TOS == 0 && r.FlowLabel == 0 && !r.HasTimestamps &&
		(r.Src.Addr().Is6() || r.DontFragment)
}

// ignored: a RST that its receiver did not take (RFC 5961 section 3.2: only the
// exact sequence number kills), after which the connection went on.
func ignored(_ *caseFile, s *story) bool {
	if s.local() || s.passive() || s.answersSYN() || !s.sender.synced || s.rst.Seq == s.sender.next ||
		s.other.hasAcked && s.rst.Seq == s.other.acked || !s.wentOn() {
		return false
	}
	o := &s.opinion
	o.claim.Origin, o.claim.Mechanism, o.claim.Layer = evidence.OriginMiddlebox, evidence.MechanismInjectedBlind, evidence.LayerNetwork
	o.claim.Confidence, o.claim.Benign = evidence.Likely, true
	o.add(packetFact("RFC 5961 section 3.2", fmt.Sprintf(
		"the RST's sequence number %d is not the expected %d, and both sides went on", s.rst.Seq, s.sender.next), s.rst))
	o.claim.Sentence = fmt.Sprintf("a RST under the name of %v did not fit and was ignored", s.rst.Src)
	o.claim.Settle = settlePeer
	return true
}

// wentOn tells whether both sides sent data or acknowledgments well after the RST.
func (s *story) wentOn() bool {
	var heard [2]bool
	for _, n := range s.segments {
		if n.Time.Sub(s.rst.Time) > afterRST && n.Flags&(evidence.RST|evidence.SYN) == 0 {
			heard[sideOf(s.excerpt, &n.Segment)] = true
		}
	}
	return heard[0] && heard[1]
}

// forged: a RST that came in and does not fit the segments of the side that it
// claims to come from.
func forged(c *caseFile, s *story) bool {
	if s.direction() != evidence.Received {
		return false
	}
	m := c.misfits(s)
	answer := s.passive() || s.answersSYN()
	if m.score < 2 || !answer && m.score < forgedScore {
		return false
	}
	if answer && c.translated(s) {
		return false
	}
	o := &s.opinion
	o.add(m.facts...)
	o.claim.Origin, o.claim.Layer, o.claim.Confidence = m.position(), evidence.LayerNetwork, evidence.Likely
	o.claim.Settle = settlePeer
	if answer && !m.stack && m.score < forgedScore {
		c.nearer(s, &m)
		return true
	}
	if m.score <= forgedScore && !m.stack {
		o.claim.Confidence = evidence.Possible // a route that changed, a foreign stack
	}
	o.claim.Mechanism = evidence.MechanismInjected
	o.claim.Sentence = fmt.Sprintf("a device on the path forged the RST in the name of %v", s.rst.Src)
	o.exclude("the peer %v: its own segments differ", s.rst.Src)
	return true
}

// nearer: an answer to a segment, made by a stack like the peer's but at another
// distance: a router's packet filter, or what stands before or behind an address.
func (c *caseFile) nearer(s *story, m *misfit) {
	o, making := &s.opinion, c.making(s)
	o.add(making.facts...)
	o.claim.Mechanism, o.claim.MechanismConfidence, o.claim.Trigger = making.mechanism, evidence.Possible, making.trigger
	if making.mechanism == evidence.MechanismQueueOverflow {
		o.claim.Mechanism = evidence.MechanismNoSocket // the queue is where the SYN/ACK came from
	}
	where := "nearer than"
	if m.hops < 0 {
		where = "behind"
	}
	if s.answersSYN() {
		// Different ports of an address can lead to different hosts (a translating
		// balancer), so the distance alone accuses nobody for sure. A filter stands
		// before the host that it guards; who answers behind does not listen.
		o.claim.Confidence = evidence.Possible
		if m.hops >= 0 {
			o.claim.Mechanism = evidence.MechanismRefusedFilter
		}
	}
	o.claim.Sentence = fmt.Sprintf("a device %s %v answered in its name: RST from %s away from where it should come", where, s.rst.Src, plural(abs(m.hops), "hop"))
}

func abs(n int) int { return max(n, -n) }

// fromHere: this host sent it; the kernel says nothing.
func fromHere(c *caseFile, s *story) bool {
	if !s.local() {
		return false
	}
	o, m := &s.opinion, c.making(s)
	o.add(m.facts...)
	o.claim.Origin, o.claim.Mechanism, o.claim.Layer = originHere(m), m.mechanism, layerOf(m.mechanism)
	o.claim.Confidence, o.claim.Trigger, o.claim.Settle = m.confidence, m.trigger, settleKernel
	if m.mechanism == evidence.MechanismRefusedFilter {
		return c.undecidedHere(s, nil) // TCP counted it, and its header is a filter's
	}
	c.countedHere(s, &m)
	if o.claim.Mechanism.Family() == evidence.MechanismActiveAbort && s.flow.Owner != nil {
		if s.flow.OwnerSource != ownedByListener { // a master listens, and its workers accept
			o.claim.Process = s.flow.Owner
		}
		o.add(socketFact("%s owns %v: %s", processName(s.flow.Owner), s.flow.Local, s.flow.OwnerSource))
	}
	o.claim.Sentence = c.sentenceHere(s, kernelReason{o.claim.Origin, o.claim.Mechanism, m.text})
	return true
}

// fromPeer: it came in, and fits its claimed sender.
func fromPeer(c *caseFile, s *story) bool {
	o, m := &s.opinion, c.making(s)
	fit := c.misfits(s)
	o.add(m.facts...)
	o.claim.Mechanism, o.claim.MechanismConfidence, o.claim.Trigger = m.mechanism, m.confidence, m.trigger
	o.claim.Layer, o.claim.Settle = layerOf(m.mechanism), settlePeer
	o.claim.Origin, o.claim.Confidence = originThere(m), evidence.Likely
	if m.mechanism == evidence.MechanismUnknown || len(fit.fits) == 0 && s.answersSYN() {
		o.claim.Confidence = evidence.Possible
		o.doubted = m.mechanism == evidence.MechanismUnknown && len(fit.fits) == 0
	}
	if len(fit.fits) > 0 {
		o.add(packetFact("", join(fit.fits), s.sender.last, s.rst))
		o.exclude("a device on the path: %s", join(fit.fits))
	}
	if f := fit.facts; len(f) > 0 {
		for i := range f {
			f[i].Against = fit.score >= 2 && !c.translated(s) // a translator is nearer
		}
		o.add(f...)
	}
	if c.translated(s) {
		o.claim.Origin, o.claim.Mechanism = evidence.OriginNAT, evidence.MechanismStateLostNAT
	}
	c.taken(s, len(fit.fits))
	o.claim.Sentence = c.sentenceThere(s, m)
	return true
}

// marksOfSocket is how many marks of the sender a RST must bear to be its own
// beyond doubt: TTL, timestamps, and IP ID or flow label.
const marksOfSocket = 3

// taken adds that this host's TCP took the RST, or did not.
func (c *caseFile) taken(s *story, fits int) {
	e := s.taken
	if e == nil {
		return
	}
	text := "TCP took the RST and ended the connection"
	if e.Kind == evidence.SegmentDropped {
		text = "TCP did not take the RST"
	}
	s.opinion.add(eventFact(e, text))
	if fits >= marksOfSocket && e.Kind == evidence.ResetReceived {
		s.opinion.claim.Confidence = evidence.Proven
	}
}

// originThere is who at the peer makes RSTs of a form.
func originThere(m making) evidence.Origin {
	switch m.mechanism.Family() {
	case evidence.MechanismActiveAbort:
		return evidence.OriginPeerProcess
	case evidence.MechanismNoSocket, evidence.MechanismQueueOverflow:
		return evidence.OriginPeerKernel
	}
	return evidence.OriginPeerHost
}
