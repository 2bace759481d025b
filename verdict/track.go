package verdict

import (
	"net/netip"
	"slices"

	"tcpcoroner/evidence"
)

// track is what the first pass over a window keeps of each flow: where its
// packets are. Segments are decoded again for implicated flows only.
type track struct {
	key     evidence.FlowKey
	packets []int32
	resets  int
	// client is the initiator if its SYN was seen.
	client    netip.AddrPort
	clientISN uint32
	closed    bool
	bytes     [2]uint64 // payload from key.A and from key.B
}

// collect sorts a window's packets into flows, in the order of their first packet.
func collect(w *evidence.Window) []*track {
	open := map[evidence.FlowKey]*track{}
	var all []*track
	var s evidence.Segment
	for i := range w.Packets {
		if evidence.ParseSegment(&w.Packets[i], &s) != nil {
			continue
		}
		t := open[s.Key()]
		if t == nil || t.reusedBy(&s) {
			t = &track{key: s.Key()}
			open[t.key] = t
			all = append(all, t)
		}
		t.add(int32(i), &s)
	}
	return all
}

// reusedBy tells whether s opens a new connection on a tuple that was closed.
func (t *track) reusedBy(s *evidence.Segment) bool {
	opens := s.Flags.Has(evidence.SYN) && !s.Flags.Has(evidence.ACK)
	return opens && t.closed && (!t.client.IsValid() || s.Seq != t.clientISN)
}

func (t *track) add(i int32, s *evidence.Segment) {
	t.packets = append(t.packets, i)
	if s.Flags.Has(evidence.SYN) && !t.client.IsValid() {
		t.client = s.Src
		t.clientISN = s.Seq
		if s.Flags.Has(evidence.ACK) {
			t.client, t.clientISN = s.Dst, s.Ack-1
		}
	}
	if s.Flags.Has(evidence.RST) {
		t.resets++
	}
	t.closed = t.closed || s.Flags&(evidence.RST|evidence.FIN) != 0
	from := 0
	if s.Src == t.key.B {
		from = 1
	}
	t.bytes[from] += uint64(s.PayloadBytes)
}

// ends returns client and server; without a SYN the lower port is the server.
func (t *track) ends() (client, server netip.AddrPort, seen bool) {
	a, b := t.key.A, t.key.B
	switch {
	case t.client == a:
		return a, b, true
	case t.client == b:
		return b, a, true
	case a.Port() < b.Port():
		return b, a, false
	}
	return a, b, false
}

// A story is bounded: the opening, the stretch before the RST, a little after.
const (
	storyOpening = 64
	storyBefore  = 448
	storyAfter   = 16
)

// excerpt returns the packet indices that the story of a flow is told from.
func (t *track) excerpt(firstReset int32) []int32 {
	at := slices.Index(t.packets, firstReset)
	end := min(len(t.packets), at+1+storyAfter)
	if at <= storyOpening+storyBefore {
		return t.packets[:end]
	}
	return slices.Concat(t.packets[:storyOpening], t.packets[at-storyBefore:end])
}
