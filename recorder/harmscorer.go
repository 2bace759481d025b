package recorder

import (
	"errors"

	"tcpcoroner/evidence"
)

// Scorer scores the resets of packets that were recorded before, with all that
// the recorder uses for it and none of its history.
type Scorer struct {
	encoder *encoder
	harm    *harm
}

// NewScorer makes a scorer. Close gives its memory back.
func NewScorer() (*Scorer, error) {
	const seed = 0xd1b54a32d192ed03 // the same packets, the same scores; its bits spread them
	e, err := newEncoder(seed)
	if err != nil {
		return nil, err
	}
	h, err := newHarm(DefaultMemory, seed)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.harm = h
	return &Scorer{encoder: e, harm: h}, nil
}

// Add takes a packet, in the order of time. It only reads the header, and keeps
// nothing of it.
func (s *Scorer) Add(p *evidence.Packet) {
	if !s.encoder.room() {
		s.harm.carry(s.encoder)
		s.encoder.reset()
	}
	m := metaFrom(p)
	s.encoder.add(&m, p.Header)
}

// Sample is what the resets so far did.
func (s *Scorer) Sample() evidence.HarmSample { return s.harm.tally.sample() }

// Close gives the memory back.
func (s *Scorer) Close() error { return errors.Join(s.encoder.close(), s.harm.close()) }
