package verdict

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tcpcoroner/evidence"
)

// This file joins what the kernel says with the packets that it speaks of.

// joinWithin is how far the kernel's time of an event may be from the packet's:
// an active reset is traced after it was sent, a passive one before.
const joinWithin = 5 * time.Millisecond

// kernelKey finds an event: the namespace's inode, and both ends. An event about a
// listener has no remote end, and maybe no address.
type kernelKey struct {
	netns         uint64
	local, remote netip.AddrPort
}

type kernelIndex struct {
	at map[kernelKey][]*evidence.KernelEvent
	// told tells that the kernel describes every RST that TCP sends.
	told bool
	// suppressed are the namespaces and ports of events that came too fast.
	suppressed []evidence.KernelSuppressed
	used       map[*evidence.KernelEvent]bool
}

func indexKernel(inc *evidence.Incident) kernelIndex {
	k := kernelIndex{at: map[kernelKey][]*evidence.KernelEvent{}, used: map[*evidence.KernelEvent]bool{}, suppressed: inc.Suppressed}
	if l := inc.KernelLevel; l != nil {
		k.told = l.Name == evidence.LevelFull || l.Name == evidence.LevelReasons
	}
	for i := range inc.Kernel {
		e := &inc.Kernel[i]
		key := kernelKey{e.NetNS, e.Local, e.Remote}
		if !e.Remote.IsValid() || e.Remote.Port() == 0 {
			key = kernelKey{e.NetNS, netip.AddrPortFrom(netip.Addr{}, e.Local.Port()), netip.AddrPort{}}
		}
		k.at[key] = append(k.at[key], e)
	}
	return k
}

// inode is that of the namespace that a story is told from.
func (c *caseFile) inode(s *story) uint64 {
	if s.here() {
		return c.inc.Host.NetNS
	}
	for _, n := range c.window.Namespaces {
		if n.Index == s.excerpt.Namespace {
			return n.Inode
		}
	}
	return 0
}

// joinKernel gives each story the event of its RST; an event is used once.
func (c *caseFile) joinKernel() {
	if len(c.kernel.at) == 0 {
		return
	}
	byTime := slices.Clone(c.stories)
	slices.SortStableFunc(byTime, func(a, b *story) int { return a.time().Compare(b.time()) })
	for _, s := range byTime {
		switch {
		case s.rst == nil:
		case s.local():
			s.event = c.take(s, s.rst.Src, s.rst.Dst, evidence.ResetSent, evidence.FirewallReject)
			s.closing = s.firstCloser()
		case s.direction() == evidence.Received && !s.forwarded:
			s.taken = c.take(s, s.rst.Dst, s.rst.Src, evidence.ResetReceived, evidence.SegmentDropped)
			if e := s.taken; e != nil && e.Owner != nil {
				s.flow.Owner, s.flow.OwnerSource = e.Owner, "the kernel's event of the reset's arrival"
			}
		}
	}
}

// take finds the event of the story's RST that fits best.
func (c *caseFile) take(s *story, local, remote netip.AddrPort, kinds ...evidence.KernelEventKind) *evidence.KernelEvent {
	var best *evidence.KernelEvent
	bestScore, bestAway := -1, joinWithin
	ns := c.inode(s)
	for _, key := range []kernelKey{
		{ns, local, remote}, {ns, netip.AddrPortFrom(netip.Addr{}, local.Port()), netip.AddrPort{}},
		{0, local, remote}, {0, netip.AddrPortFrom(netip.Addr{}, local.Port()), netip.AddrPort{}},
	} {
		for _, e := range c.kernel.at[key] {
			away := e.Time.Sub(s.rst.Time).Abs()
			if c.kernel.used[e] || !slices.Contains(kinds, e.Kind) || away > joinWithin {
				continue
			}
			score := s.agrees(e)
			if score > bestScore || score == bestScore && score >= 0 && away < bestAway {
				best, bestScore, bestAway = e, score, away
			}
		}
	}
	if best != nil {
		c.kernel.used[best] = true
	}
	return best
}

// agrees compares sequence numbers: -1 if they differ, otherwise how many are equal.
func (s *story) agrees(e *evidence.KernelEvent) int {
	n, score := e.ResetNumbers(), 0
	if n.SeqKnown {
		if n.Seq != s.rst.Seq {
			return -1
		}
		score++
	}
	if n.AckKnown && s.rst.Flags.Has(evidence.ACK) {
		if n.Ack != s.rst.Ack {
			return -1
		}
		score++
	}
	if e.Kind == evidence.SegmentDropped && (e.Trigger == nil || !e.Trigger.Flags.Has(evidence.RST)) {
		return -1
	}
	return score
}

// silentAbout tells whether the kernel would have spoken of a RST that this host's
// TCP sent, and did not.
func (c *caseFile) silentAbout(s *story) bool {
	if s.event != nil || !s.local() || !c.kernel.told {
		return false
	}
	for _, x := range c.kernel.suppressed {
		if x.Kind != evidence.SegmentDropped && !s.rst.Time.Before(x.From.Add(-joinWithin)) && !s.rst.Time.After(x.To.Add(joinWithin)) &&
			(x.Port == 0 || x.Port == s.rst.Src.Port() || x.Port == s.rst.Dst.Port()) {
			return false
		}
	}
	return true
}

// dropped finds the segment that a packet filter of this host threw away when it
// made the RST.
func (c *caseFile) dropped(s *story) *evidence.KernelEvent {
	return c.droppedAt(s.rst.Time, s.rst.Dst, s.rst.Src)
}

// droppedAt finds a segment that a packet filter threw away about a time.
func (c *caseFile) droppedAt(t time.Time, from, to netip.AddrPort) *evidence.KernelEvent {
	for i := range c.inc.Kernel {
		e := &c.inc.Kernel[i]
		if e.Kind == evidence.SegmentDropped && e.Reason == "NETFILTER_DROP" && e.Trigger != nil &&
			e.Time.Sub(t).Abs() <= joinWithin && e.Local == to && e.Remote == from {
			return e
		}
	}
	return nil
}

// kernelReason is what one reason of the kernel means.
type kernelReason struct {
	origin    evidence.Origin
	mechanism evidence.Mechanism
	text      string
}

// reasons are those of include/net/rstreason.h whose meaning does not depend on
// the socket.
var reasons = map[string]kernelReason{
	"TCP_ABORT_ON_CLOSE":    {evidence.OriginLocalProcess, evidence.MechanismUnread, "closed the socket with data unread"},
	"TCP_ABORT_ON_LINGER":   {evidence.OriginLocalProcess, evidence.MechanismActiveAbort, "closed the socket with TCP_LINGER2 below 0"},
	"TCP_ABORT_ON_MEMORY":   {evidence.OriginLocalKernel, evidence.MechanismMemory, "too many orphans, or TCP out of memory"},
	"TCP_KEEPALIVE_TIMEOUT": {evidence.OriginLocalKernel, evidence.MechanismKeepalive, "the peer did not answer keepalive probes"},
	"TCP_TIMEWAIT_SOCKET":   {evidence.OriginLocalKernel, evidence.MechanismLateData, "a segment came for a socket that was closed"},
	"TCP_ABORT_ON_DATA":     {evidence.OriginLocalKernel, evidence.MechanismLateData, "data came for a socket whose process had closed it"},
}

// readEvent says what an event of a RST that this host sent means. Form is what the
// header says, which stands where the kernel gives no reason.
func (c *caseFile) readEvent(s *story, e *evidence.KernelEvent, form kernelReason) kernelReason {
	if r, ok := reasons[e.Reason]; ok {
		if r.mechanism == evidence.MechanismUnread && e.Exiting {
			r.mechanism, r.text = evidence.MechanismProcessExit, exitText(e)
		}
		return r
	}
	switch e.Reason {
	case "TCP_STATE", "":
		if e.Trigger == nil && e.HasNumbers {
			return c.unexplained(s, e, abortReason(e))
		}
	}
	if e.Trigger == nil {
		return form
	}
	return c.unknownConnection(s, e, form)
}

// abortReason tells apart what TCP_STATE covers: close(2) with SO_LINGER 0, a
// listener's close, sock_diag(7)'s destroy, connect(2) to AF_UNSPEC.
func abortReason(e *evidence.KernelEvent) kernelReason {
	r := kernelReason{evidence.OriginLocalProcess, evidence.MechanismLinger, "closed the socket with SO_LINGER 0"}
	switch {
	case e.Exiting:
		r.mechanism, r.text = evidence.MechanismProcessExit, exitText(e)
	case slices.Contains(openStates, e.State):
		r.origin, r.mechanism, r.text = evidence.OriginLocalKernel, evidence.MechanismKilledSocket, "an administrator or agent destroyed the socket"
	case e.Via == evidence.ViaInherit && e.Orphan:
		r.mechanism, r.text = evidence.MechanismListenerClosed, "closed the listener before it accepted the connection"
	case e.Linger && e.LingerTime == 0:
	case e.Unread > 0:
		r.mechanism, r.text = evidence.MechanismUnread, "closed the socket with data unread"
	default:
		r.mechanism, r.text = evidence.MechanismActiveAbort, "aborted the socket"
	}
	return r
}

// openStates are those of which a destroyed socket sends RST (tcp_need_reset); whoever
// closes one leaves them before.
var openStates = []string{"established", "close_wait", "fin_wait_1", "fin_wait_2", "syn_received"}

// unexplained reads the end of a socket of which the kernel gave no reason, as those
// before 6.10: too many orphans and keepalive timers end open ones, too. Who destroys
// a socket runs meanwhile.
func (c *caseFile) unexplained(s *story, e *evidence.KernelEvent, r kernelReason) kernelReason {
	destroyed := r.mechanism == evidence.MechanismKilledSocket
	onMemory, _ := c.movedFor(s, "TcpExt.TCPAbortOnMemory")
	switch {
	case e.Reason != "" || destroyed && e.Actor != nil:
	case e.Orphan && onMemory > 0 && (destroyed || r.mechanism == evidence.MechanismActiveAbort):
		r = reasons["TCP_ABORT_ON_MEMORY"]
		r.text += ", for TCPAbortOnMemory grew"
	case destroyed && c.diedOf(e) == errTimedOut:
		r = reasons["TCP_KEEPALIVE_TIMEOUT"]
		r.text += ", for the socket timed out"
	}
	return r
}

// diedOf is the error that the socket of an event had right then, 0 if none is known.
func (c *caseFile) diedOf(e *evidence.KernelEvent) int {
	for _, k := range c.kernel.at[kernelKey{e.NetNS, e.Local, e.Remote}] {
		if k.Kind == evidence.SocketError && k.Time.Sub(e.Time).Abs() <= joinWithin {
			return k.Errno
		}
	}
	return 0
}

func exitText(e *evidence.KernelEvent) string {
	switch {
	case e.OutOfMemory:
		return "was killed by the OOM killer"
	case e.Signal != 0:
		return fmt.Sprintf("was killed by signal %d", e.Signal)
	}
	return "exited"
}

// unknownConnection reads NO_SOCKET and a listener's TCP_FLAGS and INVALID_SYN: a
// segment met no socket of its connection.
func (c *caseFile) unknownConnection(s *story, e *evidence.KernelEvent, form kernelReason) kernelReason {
	r := kernelReason{origin: evidence.OriginLocalKernel}
	grave := e.Grave
	if grave != nil && grave.Died.Before(s.flow.First) {
		grave = nil // it was of an earlier connection between the same ports
	}
	syn := e.Trigger.Flags.Has(evidence.SYN) && !e.Trigger.Flags.Has(evidence.ACK)
	full := e.Backlog > 0 && e.AcceptQueue >= e.Backlog
	over, _ := c.movedFor(s, "TcpExt.ListenOverflows")
	switch {
	case e.State == "listen" && (full || e.Reason == "INVALID_SYN" && over > 0):
		r.mechanism, r.text = evidence.MechanismQueueOverflow, fmt.Sprintf("the accept queue was full: %d of %d", e.AcceptQueue, e.Backlog)
	case syn && e.State != "listen":
		r.mechanism, r.text = evidence.MechanismRefusedListener, "nothing listens on the port"
	case form.mechanism == evidence.MechanismQueueOverflow && over > 0:
		r.mechanism, r.text = form.mechanism, "the accept queue was full when the handshake ended"
	case grave != nil && grave.Errno == 0 && grave.State == "established" && s.sender.fin == nil:
		// An open socket that ends by close or abort says so on the wire (RFC 9293
		// section 3.6): this one was taken away.
		r.mechanism, r.text = evidence.MechanismStateLost, "the connection's socket had vanished "+
			seconds(e.Time.Sub(grave.Died))+" before, without FIN or RST"
	case grave != nil && grave.Errno == 0:
		r.mechanism, r.text = evidence.MechanismLateData, "a segment came for a socket that was closed "+
			seconds(e.Time.Sub(grave.Died))+" before"
	case grave != nil:
		r.mechanism, r.text = evidence.MechanismStateLost, fmt.Sprintf("the socket had died %s before with errno %d",
			seconds(e.Time.Sub(grave.Died)), grave.Errno)
	case form.mechanism == evidence.MechanismLateData:
		r.mechanism, r.text = form.mechanism, "a segment came for a connection that was closed"
	default:
		r.mechanism, r.text = evidence.MechanismNoSocket, "no socket of this host belongs to the segment"
	}
	return r
}

// doer is the process that an event names as the one that did it. Who listens is not
// who did it: a worker may have accepted the connection, and nobody told.
func doer(e *evidence.KernelEvent, m evidence.Mechanism) *evidence.Owner {
	switch {
	case m.Family() == evidence.MechanismRefused, m == evidence.MechanismNoSocket:
		return nil // the event names the listener at most
	case e.Actor != nil && m.Family() == evidence.MechanismActiveAbort:
		return e.Actor
	case e.Owner != nil && (e.Via != evidence.ViaInherit || m == evidence.MechanismListenerClosed):
		return e.Owner
	case e.Owner == nil && e.Grave != nil && e.Grave.Via != evidence.ViaInherit:
		return e.Grave.Owner
	}
	return nil
}

// eventFact is the finding that an event is.
func eventFact(e *evidence.KernelEvent, text string) evidence.Finding {
	t := fmt.Sprintf("the kernel says %s", text)
	if e.Reason != "" {
		t += fmt.Sprintf(" (%s)", e.Reason)
	}
	if e.Actor != nil {
		t += fmt.Sprintf("; %s was running", processName(e.Actor))
	}
	if e.Owner != nil && (e.Actor == nil || e.Actor.PID != e.Owner.PID) {
		t += fmt.Sprintf("; the socket is of %s (%s)", processName(e.Owner), e.Via)
	}
	if e.Unread > 0 {
		t += fmt.Sprintf("; %d bytes were unread", e.Unread)
	}
	return evidence.Finding{Kind: evidence.KindKernel, Text: t, Source: "include/net/rstreason.h"}
}

func processName(o *evidence.Owner) string {
	return fmt.Sprintf("%s[%d]", cmp.Or(o.Comm, "?"), o.PID)
}
