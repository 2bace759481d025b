package verdict

import (
	"slices"

	"tcpcoroner/evidence"
)

// Selection draws from a window of any size, in bounded memory, the packets that
// Judge needs. It reads the window twice, each time from its first packet to its
// last: Survey counts and finds the flows that were reset or failed without an
// answer, Take copies their packets.
//
//	sel := verdict.NewSelection()
//	for each packet { sel.Survey(p) }
//	for each packet { sel.Take(p) } // may leave out what sel.Need does not ask for
//	sel.Fill(&inc.Window)
//	judgement := verdict.Judge(inc)
//
// It must not be used concurrently.
type Selection struct {
	packets, resets, sent, own int
	tallies                    tallies
	recent                     recentResets
	choice                     choice
	answers                    answers
	taking                     *taking
	glance                     glance
	ignored                    []uint16
	segment                    evidence.Segment // reused, so that no call allocates
}

// NewSelection makes a Selection; it holds some 100 KiB, 5 MiB of many flows, and up
// to 20 MiB in a storm.
func NewSelection() *Selection {
	return &Selection{
		tallies: tallies{slots: make([]tallySlot, fewTallySlots)},
		recent:  newRecentResets(),
		choice:  choice{at: map[flowID]*chosen{}},
		answers: answers{},
	}
}

// Ignore leaves flows on loopback out that have one of the ports: they are the
// recorder's tests of itself. Their packets are counted, and no flow is told.
func (s *Selection) Ignore(ports []uint16) { s.ignored = ports }

// ignores tells whether a packet is of such a flow.
func (s *Selection) ignores(p *evidence.Packet, g *glance) bool {
	if len(s.ignored) == 0 || p.Direction != evidence.Loopback {
		return false
	}
	a, b := g.id.bothPorts()
	return slices.Contains(s.ignored, a) || slices.Contains(s.ignored, b)
}

// Survey takes the next packet of the first pass. The packet, which must have its
// Number, and its header are not kept.
func (s *Selection) Survey(p *evidence.Packet) {
	s.packets++
	g := &s.glance
	if !g.look(p, &s.segment) {
		return
	}
	if s.ignores(p, g) {
		if g.flags.Has(evidence.RST) {
			s.resets++
			s.sent++
			s.own++
		}
		return
	}
	if p.Sighting == 0 {
		s.tallies.count(g, p.Direction, p.Nanos)
		s.answers.count(g, p)
	}
	if g.flags.Has(evidence.RST) && evidence.ParseSegment(p, &s.segment) == nil {
		s.surveyReset(p, g.id)
	}
}

func (s *Selection) surveyReset(p *evidence.Packet, id flowID) {
	r := sightOf(p, &s.segment)
	earlier, relayed := s.recent.meet(&r)
	if earlier != nil {
		r.root = earlier.root
		root := id
		root.namespace = r.root
		s.choice.again(root, id)
	} else {
		s.choice.reset(&r, id)
	}
	if relayed != nil {
		s.choice.relayed(relayed, &r)
	}
	if p.Sighting == 0 && earlier == nil {
		s.resets++
		if r.namespace == 0 && relayed == nil && (r.direction == evidence.Sent || r.direction == evidence.Loopback) {
			s.sent++
		}
	}
	s.recent.remember(&r)
}

// choose ends the first pass.
func (s *Selection) choose() {
	if s.taking != nil {
		return
	}
	s.choice.silent(&s.tallies)
	s.taking = newTaking(&s.choice)
	s.recent, s.tallies.slots = recentResets{}, nil // their memory is needed now
}

// Need ends the first pass and returns what tells which packets Take need not see:
// neither a RST nor one that is no plain TCP segment, and of those that are like a
// packet, which the same end of a connection sends and that come the same way with the
// same TTL, those behind the first n, where math.MaxInt is all. That may be called
// while the second pass goes on.
func (s *Selection) Need() func(like *evidence.Packet) int {
	s.choose()
	t, g, segment := s.taking, glance{}, evidence.Segment{}
	return func(p *evidence.Packet) int { return t.need(p, &g, &segment) }
}

// Take takes the next packet of the second pass, which must be the same as the
// first. What is needed of the packet is copied.
func (s *Selection) Take(p *evidence.Packet) {
	s.choose()
	g := &s.glance
	if g.look(p, &s.segment) && s.taking.matters(p, g) && evidence.ParseSegment(p, &s.segment) == nil {
		s.taking.take(p, g, &s.segment)
	}
}

// Fill sets the counts of a window, its Packets and its Excerpts. The Selection is
// used up with it.
func (s *Selection) Fill(w *evidence.Window) {
	s.choose()
	w.PacketCount, w.ResetCount, w.SentResets, w.OwnResets = s.packets, s.resets, s.sent, s.own
	w.FlowCount, w.ResetFlowCount, w.FlowsAtLeast = s.tallies.flows, s.tallies.resets, s.tallies.atLeast
	w.Answers = s.answers.list()
	s.taking.fill(w)
	*s = Selection{}
}
