package verdict

import (
	"time"

	"tcpcoroner/evidence"
)

// closing is the act by which a connection ended first: the FIN or RST of the side
// that decided. A RST that answers a segment is no decision of its sender.
type closing struct {
	by *end
	at *seen
	// idle is the silence before it, since the last segment with payload, and age
	// the time since the connection's first segment.
	idle, age time.Duration
	// waiting tells that the side which closed had spoken last: it waited for an
	// answer.
	waiting bool
	// exchanged tells that both sides had sent payload.
	exchanged bool
}

// firstCloser finds the first FIN, or the RST if it is an open socket's own.
func (s *story) firstCloser() closing {
	var at *seen
	for _, n := range s.segments {
		if n.Flags.Has(evidence.FIN) && !s.halfClose(n) {
			at = n
			break
		}
		if n == s.rst {
			if s.active() {
				at = n
			}
			break
		}
	}
	if at == nil {
		return closing{}
	}
	d := closing{at: at, by: s.sender, age: at.Time.Sub(s.flow.First)}
	if at.Src == s.other.addr {
		d.by = s.other
	}
	d.weigh(s)
	return d
}

// halfClose tells whether a FIN only ended its side's data (shutdown(2)): the other
// side then aborted its open socket, with data of the first unread or on its way.
func (s *story) halfClose(fin *seen) bool {
	return s.active() && fin.Src == s.other.addr && s.sender.fin == nil &&
		(s.unacked() > 1 || s.unread() || s.event != nil && s.event.Unread > 0 || s.onlyAsked(fin))
}

// onlyAsked tells whether a FIN right behind a request says that the request is
// complete: nobody gives up so soon.
func (s *story) onlyAsked(fin *seen) bool {
	last := s.lastData(fin.Time)
	if fin.PayloadBytes > 0 {
		last = fin
	}
	return last != nil && last.Src == fin.Src && s.sender.data == nil && fin.Time.Sub(last.Time) <= atOnce
}

// weigh looks at the data before the closing. A FIN may carry the last of it.
func (d *closing) weigh(s *story) {
	last := s.segments[0]
	mine, theirs := false, false
	for _, n := range s.segments {
		if n == d.at && n.PayloadBytes == 0 || n.Time.After(d.at.Time) {
			break
		}
		if n.PayloadBytes == 0 || n.keepalive(s) {
			continue
		}
		last = n
		mine, theirs = mine || n.Src == d.by.addr, theirs || n.Src != d.by.addr
		if n == d.at {
			break
		}
	}
	d.idle = d.at.Time.Sub(last.Time)
	d.waiting = mine && last.Src == d.by.addr
	d.exchanged = mine && theirs
}

// keepalive tells whether a segment is a keepalive or window probe, whose byte was
// acknowledged long ago (RFC 9293 section 3.8.4).
func (n *seen) keepalive(s *story) bool {
	if n.PayloadBytes != 1 {
		return false
	}
	for _, o := range s.segments {
		if o == n {
			return false
		}
		if o.Src == n.Dst && o.Flags.Has(evidence.ACK) && !after(n.Seq+1, o.Ack) {
			return true
		}
	}
	return false
}

// lastData is the last segment with payload before t, of either side.
func (s *story) lastData(t time.Time) *seen {
	var last *seen
	for _, n := range s.segments {
		if !n.Time.Before(t) {
			break
		}
		if n.PayloadBytes > 0 {
			last = n
		}
	}
	return last
}

// rtt is the time from SYN to the end of the handshake; a millisecond if it was
// not seen.
func (s *story) rtt() time.Duration {
	a, b := s.sender, s.other
	if a.syn == nil || b.syn == nil {
		return time.Millisecond
	}
	first, ack := a, b
	if a.syn.Time.After(b.syn.Time) {
		first, ack = b, a
	}
	for _, n := range s.segments {
		if n.Src == first.addr && n.Time.After(ack.syn.Time) {
			return max(n.Time.Sub(first.syn.Time), time.Millisecond)
		}
	}
	return time.Millisecond
}
