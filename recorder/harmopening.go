package recorder

// Most connections of a scan are a SYN and the RST that refuses it, and never come
// again. As long as no more than the SYN counts, it is kept in the open chunk's flow,
// which is at hand when the answer comes: nothing is tracked of them. What comes of
// them is the same as if they were.

// The states of such a flow, in place of where it is tracked.
const (
	// flowOpening began with a SYN, and no other control segment came since.
	flowOpening = 1<<32 - 1 - iota
	// flowRefused is one of which the SYN was answered with RST.
	flowRefused
)

// early takes a segment that is scored without its connection being tracked. Of others
// it returns what is tracked, nil if nothing is, and false.
func (h *harm) early(s *segment) (t *tracked, done bool) {
	f, rst := s.flow, s.flags&flagRST != 0
	switch {
	case f == nil:
	case s.begins():
		f.tracked, f.isn, f.opened = flowOpening, s.seq, s.milli
		return nil, true
	case f.tracked == flowOpening && rst && s.side == 1 && !f.sides[1].seen:
		h.refuse(s)
		return nil, true
	case f.tracked == flowOpening:
		return h.adopt(s.hasher, f, h.find(s.tag(), nil)), false
	case f.tracked == flowRefused && rst:
		h.count(s, &ended{duplicate: true}, 1-s.side)
		return nil, true
	case f.tracked == flowRefused && s.flags&(flagSYN|flagACK) != flagSYN:
		return nil, true // a FIN, or the answer to another SYN
	case f.tracked == flowRefused:
		h.recall(s, &f.sides[1])
	}
	return h.find(s.tag(), f), false
}

// recall marks the RST that refused a connection, now that its SYN may be sent again,
// as some systems do at once: if the same RST answers it, nobody tried twice.
func (h *harm) recall(s *segment, rst *state) {
	h.copied(&segment{key: s.key, hasher: s.hasher, seq: rst.seq, ack: rst.ack, flags: rst.flags, milli: rst.milli})
}

// begins tells that a flow begins with the segment, as connections do.
func (s *segment) begins() bool {
	return s.flags&(flagSYN|flagACK|flagRST|flagFIN) == flagSYN && !s.flow.sides[0].seen && !s.flow.sides[1].seen
}

// refuse scores the server's RST that answers the SYN.
func (h *harm) refuse(s *segment) {
	// A copy in the same namespace is of the same flow, which knows; see recall.
	r := ended{known: true, opening: true, duplicate: h.elsewhere && h.copied(s)}
	h.lookUp(s, &r)
	h.count(s, &r, 0)
	h.tally.closes++
	s.flow.tracked = flowRefused
}

// adopt tracks a connection from the SYN on that its flow began with. t is what was
// tracked of its ends before, nil if nothing was.
func (h *harm) adopt(e *encoder, f *flow, t *tracked) *tracked {
	t = h.syn(&segment{key: &f.key, hasher: e, seq: f.isn, flags: flagSYN, milli: f.opened}, t)
	f.tracked = t.place
	return t
}
