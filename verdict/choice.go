package verdict

import "tcpcoroner/evidence"

// Which flows with a RST are judged, where there are more than can be: the first
// ones by time; of each kind a few more, so that a storm does not hide a second
// cause; and the last ones. A kind is which way the RST went, its form, and the
// lower port, the ports sorted into classes by their last bits.
const (
	chosenFirst   = 768
	chosenPerKind = 6
	chosenLast    = 128
	portClasses   = 16
	kinds         = 3 * 3 * portClasses
	// maxViews bounds the flows as single namespaces show them: each is seen in one,
	// and 1,024 times one is seen in another too.
	maxViews     = chosenFirst + chosenPerKind*kinds + chosenLast + maxMoreViews
	maxMoreViews = 1024
)

// chosen is a flow that is judged.
type chosen struct {
	// views are the flow in each namespace that showed its RST, n of them.
	views [4]flowID
	n     int
	// partner is the number of the RST that this flow's relays or that relays it,
	// 0 if there is none.
	partner int
	// silent: the flow has no RST.
	silent bool
}

// choice holds the flows that are judged.
type choice struct {
	at    map[flowID]*chosen
	kept  []*chosen
	kinds [kinds]uint8
	last  []*chosen
	next  int // in last
	more  int // views beyond the first of a flow
}

// reset takes a RST that was not seen before.
func (c *choice) reset(r *resetSight, id flowID) {
	if c.at[id] != nil {
		return
	}
	k := kindOf(r)
	if len(c.kept) < chosenFirst || c.kinds[k] < chosenPerKind {
		c.kinds[k] = min(c.kinds[k]+1, chosenPerKind)
		f := &chosen{}
		c.kept = append(c.kept, f)
		c.show(f, id)
		return
	}
	if len(c.last) < chosenLast {
		c.last = append(c.last, &chosen{})
	}
	f := c.last[c.next]
	c.next = (c.next + 1) % chosenLast
	for _, v := range f.views[:f.n] {
		delete(c.at, v)
	}
	c.more -= max(f.n-1, 0)
	*f = chosen{}
	c.show(f, id)
}

// again takes a further sighting, in another namespace, of a RST of the flow root.
func (c *choice) again(root, id flowID) {
	f := c.at[root]
	if f != nil && c.at[id] == nil && f.n < len(f.views) && c.more < maxMoreViews {
		c.more++
		c.show(f, id)
	}
}

func (c *choice) show(f *chosen, id flowID) {
	f.views[f.n] = id
	f.n++
	c.at[id] = f
}

// relayed notes that the RST of the flow from left again as that of the flow to.
func (c *choice) relayed(from, to *resetSight) {
	f := c.at[flowIDOf(from.src, from.dst, from.namespace)]
	if f != nil && f.partner == 0 {
		f.partner = to.number
	}
	t := c.at[flowIDOf(to.src, to.dst, to.namespace)]
	if t != nil && t.partner == 0 {
		t.partner = from.number
	}
}

func kindOf(r *resetSight) int {
	way, form := 2, 2 // of unknown direction; bare, in answer to a segment
	switch r.direction {
	case evidence.Sent, evidence.Loopback:
		way = 0
	case evidence.Received:
		way = 1
	}
	switch {
	case r.flags.Has(evidence.ACK) && r.seq == 0:
		form = 0 // in answer to a SYN
	case r.flags.Has(evidence.ACK):
		form = 1 // of a socket
	}
	return (way*3+form)*portClasses + int(min(r.src.Port(), r.dst.Port())%portClasses)
}
