package verdict

import (
	"net/netip"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

const ownNetNS = 4026531840

var app = &evidence.Owner{PID: 7, Comm: "app"}

// told makes an incident on a kernel that describes every RST.
func told(packets []pkt, events ...evidence.KernelEvent) *evidence.Incident {
	inc := &evidence.Incident{Window: window(packets...), Host: evidence.Host{NetNS: ownNetNS}}
	inc.KernelLevel = &evidence.KernelLevel{Name: evidence.LevelFull}
	for i := range events {
		if events[i].NetNS == 0 {
			events[i].NetNS = ownNetNS
		}
	}
	inc.Kernel = events
	return inc
}

func atMS(ms float64) time.Time { return start.Add(time.Duration(ms * float64(time.Millisecond))) }

// sentEvent is the kernel's event of a RST by the server at 9 ms.
func sentEvent(change func(*evidence.KernelEvent)) evidence.KernelEvent {
	e := evidence.KernelEvent{
		Kind: evidence.ResetSent, Time: atMS(9.02), Local: server, Remote: client, Reason: "TCP_STATE", State: "close",
		SndNxt: 501, RcvNxt: 151, HasNumbers: true, Owner: app, Via: evidence.ViaAccept, Actor: app,
		ShutdownRead: true, ShutdownWrite: true,
	}
	if change != nil {
		change(&e)
	}
	return e
}

var (
	activeRST  = pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	passiveRST = pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: evidence.Sent}
	request    = pkt{ms: 8, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 10, dir: evidence.Received, id: 9}
	strayACK   = &evidence.Trigger{Flags: evidence.ACK, Seq: 151, Ack: 501, PayloadBytes: 10}
)

// TestKernelReasons: each reason, with the packets that the kernel makes of it.
func TestKernelReasons(t *testing.T) {
	active, passive := served(true, activeRST), served(true, request, passiveRST)
	syn := []pkt{{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: evidence.Received},
		{ms: 9, src: server, dst: client, flags: rstAck, ack: 101, dir: evidence.Sent}}
	by := func(reason string, trigger *evidence.Trigger, more func(*evidence.KernelEvent)) evidence.KernelEvent {
		return sentEvent(func(e *evidence.KernelEvent) {
			e.Reason, e.Trigger = reason, trigger
			if trigger != nil {
				e.Actor, e.HasNumbers = nil, false
			}
			if more != nil {
				more(e)
			}
		})
	}
	tests := []struct {
		name      string
		packets   []pkt
		event     evidence.KernelEvent
		origin    evidence.Origin
		mechanism evidence.Mechanism
		pid       int
		cause     evidence.Cause
	}{
		{"unread data", active, by("TCP_ABORT_ON_CLOSE", nil, func(e *evidence.KernelEvent) { e.Unread = 50 }),
			evidence.OriginLocalProcess, evidence.MechanismUnread, 7, evidence.CauseAppAbort},
		{"killed with unread data", active, by("TCP_ABORT_ON_CLOSE", nil, func(e *evidence.KernelEvent) { e.Exiting, e.Signal = true, 9 }),
			evidence.OriginLocalProcess, evidence.MechanismProcessExit, 7, evidence.CauseProcessDown},
		{"SO_LINGER 0", active, by("TCP_STATE", nil, func(e *evidence.KernelEvent) { e.Linger = true }),
			evidence.OriginLocalProcess, evidence.MechanismLinger, 7, evidence.CauseAppAbort},
		{"SO_LINGER 0, by whom is not known: the owner is only the listener's", active, by("TCP_STATE", nil, func(e *evidence.KernelEvent) {
			e.Linger, e.Actor, e.Via = true, nil, evidence.ViaInherit
		}), evidence.OriginLocalProcess, evidence.MechanismLinger, 0, evidence.CauseAppAbort},
		{"destroyed by ss -K", active, by("TCP_STATE", nil, func(e *evidence.KernelEvent) {
			e.State, e.Actor = "established", &evidence.Owner{PID: 9, Comm: "ss"}
		}), evidence.OriginLocalKernel, evidence.MechanismKilledSocket, 9, evidence.CauseAppAbort},
		{"listener closed", active, by("TCP_STATE", nil, func(e *evidence.KernelEvent) { e.Via, e.Orphan = evidence.ViaInherit, true }),
			evidence.OriginLocalProcess, evidence.MechanismListenerClosed, 7, evidence.CauseProcessDown},
		{"keepalive", active, by("TCP_KEEPALIVE_TIMEOUT", nil, func(e *evidence.KernelEvent) { e.Actor = nil }),
			evidence.OriginLocalKernel, evidence.MechanismKeepalive, 7, evidence.CauseTimeout},
		{"memory", active, by("TCP_ABORT_ON_MEMORY", nil, func(e *evidence.KernelEvent) { e.Actor = nil }),
			evidence.OriginLocalKernel, evidence.MechanismMemory, 7, evidence.CauseMemory},
		{"closed before, in time-wait", passive, by("TCP_TIMEWAIT_SOCKET", strayACK, nil),
			evidence.OriginLocalKernel, evidence.MechanismLateData, 7, evidence.CauseUnknown},
		{"no socket, and none was here", passive, by("NO_SOCKET", strayACK, func(e *evidence.KernelEvent) { e.Owner = nil }),
			evidence.OriginLocalKernel, evidence.MechanismNoSocket, 0, evidence.CauseStateLost},
		{"no socket, one was closed here", passive, by("NO_SOCKET", strayACK, func(e *evidence.KernelEvent) {
			e.Owner, e.Grave = nil, &evidence.Grave{Owner: app, Died: atMS(5)}
		}), evidence.OriginLocalKernel, evidence.MechanismLateData, 7, evidence.CauseUnknown},
		{"no socket, one vanished here without a word", passive, by("NO_SOCKET", strayACK, func(e *evidence.KernelEvent) {
			e.Owner, e.Grave = nil, &evidence.Grave{Owner: app, Died: atMS(5), State: "established"}
		}), evidence.OriginLocalKernel, evidence.MechanismStateLost, 7, evidence.CauseStateLost},
		{"a listener with room met a stray segment, blank tuple", passive, by("TCP_FLAGS", strayACK, func(e *evidence.KernelEvent) {
			e.State, e.Local, e.Remote = "listen", netip.AddrPortFrom(netip.IPv4Unspecified(), 8080), netip.AddrPort{}
		}), evidence.OriginLocalKernel, evidence.MechanismNoSocket, 0, evidence.CauseStateLost},
		{"no socket, and the grave is of an earlier connection", passive, by("NO_SOCKET", strayACK, func(e *evidence.KernelEvent) {
			e.Owner, e.Grave = nil, &evidence.Grave{Owner: app, Died: atMS(-900)}
		}), evidence.OriginLocalKernel, evidence.MechanismNoSocket, 0, evidence.CauseStateLost},
		{"a full listener", handshake(request, passiveRST), by("INVALID_SYN", strayACK, func(e *evidence.KernelEvent) {
			e.State, e.AcceptQueue, e.Backlog = "listen", 5, 4
		}), evidence.OriginLocalKernel, evidence.MechanismQueueOverflow, 7, evidence.CauseBacklogFull},
		{"nothing listens", syn, by("NO_SOCKET", &evidence.Trigger{Flags: evidence.SYN, Seq: 100}, func(e *evidence.KernelEvent) {
			e.Owner, e.LastListener = nil, app
		}), evidence.OriginLocalKernel, evidence.MechanismRefusedListener, 0, evidence.CauseProcessDown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := one(t, told(tt.packets, tt.event))
			c := f.Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Confidence != evidence.Proven || c.Cause != tt.cause {
				t.Errorf("%s/%s %s cause %s, want %s/%s proven cause %s: %s", c.Origin, c.Mechanism, c.Confidence, c.Cause, tt.origin, tt.mechanism, tt.cause, c.Sentence)
			}
			if pid := ownerPID(c.Process); pid != tt.pid {
				t.Errorf("process %d, want %d", pid, tt.pid)
			}
		})
	}
}

func ownerPID(o *evidence.Owner) int {
	if o == nil {
		return 0
	}
	return o.PID
}

// TestWithoutReason: kernels before 6.10 give none. What else they tell says how an open
// socket ended.
func TestWithoutReason(t *testing.T) {
	open := func(state string, orphan bool, actor *evidence.Owner) evidence.KernelEvent {
		return sentEvent(func(e *evidence.KernelEvent) { e.Reason, e.State, e.Orphan, e.Actor = "", state, orphan, actor })
	}
	died := func(errno int) evidence.KernelEvent {
		return evidence.KernelEvent{Kind: evidence.SocketError, Errno: errno, Time: atMS(9.1), Local: server, Remote: client, Owner: app}
	}
	agent := &evidence.Owner{PID: 9, Comm: "ss"}
	const errConnAborted = 103
	memory := map[string]uint64{"TcpExt.TCPAbortOnMemory": 1}
	for name, tt := range map[string]struct {
		events    []evidence.KernelEvent
		grown     map[string]uint64
		origin    evidence.Origin
		mechanism evidence.Mechanism
	}{
		"it had timed out":            {[]evidence.KernelEvent{open("established", false, nil), died(errTimedOut)}, nil, evidence.OriginLocalKernel, evidence.MechanismKeepalive},
		"it was destroyed":            {[]evidence.KernelEvent{open("established", false, agent), died(errConnAborted)}, nil, evidence.OriginLocalKernel, evidence.MechanismKilledSocket},
		"an orphan, one of too many":  {[]evidence.KernelEvent{open("fin_wait_1", true, nil)}, memory, evidence.OriginLocalKernel, evidence.MechanismMemory},
		"an orphan that an agent met": {[]evidence.KernelEvent{open("fin_wait_1", true, agent)}, memory, evidence.OriginLocalKernel, evidence.MechanismKilledSocket},
		"an orphan, for nothing":      {[]evidence.KernelEvent{open("fin_wait_2", true, nil)}, nil, evidence.OriginLocalKernel, evidence.MechanismKilledSocket},
		"it was closed":               {[]evidence.KernelEvent{open("closed", false, app)}, nil, evidence.OriginLocalProcess, evidence.MechanismActiveAbort},
	} {
		t.Run(name, func(t *testing.T) {
			inc := told(served(true, activeRST), tt.events...)
			counters(inc, tt.grown)
			c := one(t, inc).Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.MechanismConfidence != evidence.Likely {
				t.Errorf("%s, %s %s: %s", c.Origin, c.Mechanism, c.MechanismConfidence, c.Sentence)
			}
		})
	}
}

// TestKernelJoin: an event is used for its own RST only.
func TestKernelJoin(t *testing.T) {
	plain := sentEvent(nil)
	tests := []struct {
		name   string
		change func(*evidence.KernelEvent)
		joined bool
	}{
		{"its own", nil, true},
		{"a little before the packet", func(e *evidence.KernelEvent) { e.Time = atMS(5) }, true},
		{"too long before", func(e *evidence.KernelEvent) { e.Time = atMS(1) }, false},
		{"other numbers", func(e *evidence.KernelEvent) { e.SndNxt = 77 }, false},
		{"another namespace", func(e *evidence.KernelEvent) { e.NetNS = 1 }, false},
		{"another port", func(e *evidence.KernelEvent) { e.Remote = netip.AddrPortFrom(client.Addr(), 1) }, false},
		{"a RST that came in", func(e *evidence.KernelEvent) { e.Kind = evidence.ResetReceived }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := plain
			if tt.change != nil {
				tt.change(&e)
			}
			c := one(t, told(served(true, activeRST), e)).Verdict.Claim()
			if joined := c.Process != nil; joined != tt.joined {
				t.Errorf("joined %v, want %v: %s", joined, tt.joined, c.Sentence)
			}
		})
	}
}

// TestKernelWithoutReasons: where the kernel gives none, the socket's fields tell
// how, but do not prove it.
func TestKernelWithoutReasons(t *testing.T) {
	e := sentEvent(func(e *evidence.KernelEvent) { e.Reason, e.Linger = "", true })
	c := one(t, told(served(true, activeRST), e)).Verdict.Claim()
	if c.Mechanism != evidence.MechanismLinger || c.Confidence != evidence.Proven || c.MechanismConfidence != evidence.Likely {
		t.Errorf("%s %s, mechanism %s", c.Mechanism, c.Confidence, c.MechanismConfidence)
	}
}

// TestHeaderAgainstKernel: a header that the reason cannot have made is told, and caps.
func TestHeaderAgainstKernel(t *testing.T) {
	e := sentEvent(func(e *evidence.KernelEvent) { e.Reason, e.HasNumbers = "TCP_ABORT_ON_CLOSE", false })
	c := one(t, told(served(true, request, passiveRST), e)).Verdict.Claim()
	if c.Confidence != evidence.Possible {
		t.Errorf("%s/%s %s: %s", c.Origin, c.Mechanism, c.Confidence, c.Sentence)
	}
}

// refusal is a RST like netfilter's, in answer to a SYN.
func refusal(n int) []pkt {
	src := netip.AddrPortFrom(client.Addr(), uint16(41000+n))
	ms := float64(10 * n)
	return []pkt{{ms: ms, src: src, dst: server, flags: evidence.SYN, seq: 100, dir: evidence.Received},
		{ms: ms + .1, src: server, dst: src, flags: rstAck, ack: 101, dir: evidence.Sent, window: none, df: true}}
}

// TestFilter: who made a RST that TCP did not.
func TestFilter(t *testing.T) {
	rules := func(text string) *evidence.Snapshot {
		return &evidence.Snapshot{Implicated: &evidence.Implicated{Rules: &evidence.Ruleset{Rules: []evidence.Rule{
			{Family: "inet", Table: "filter", Chain: "input", Handle: 4, Action: "reject with tcp reset", Text: text}}}}}
	}
	drop := evidence.KernelEvent{Kind: evidence.SegmentDropped, Time: atMS(.1), Reason: "NETFILTER_DROP", Location: "nft_do_chain",
		Local: server, Remote: refusal(0)[0].src, Trigger: &evidence.Trigger{Flags: evidence.SYN, Seq: 100}}
	tests := []struct {
		name       string
		inc        func() *evidence.Incident
		origin     evidence.Origin
		mechanism  evidence.Mechanism
		confidence evidence.Confidence
	}{
		{"the kernel is silent, a rule fits", func() *evidence.Incident {
			i := told(refusal(0))
			i.At = rules("tcp dport { 80, 8080 } reject with tcp reset")
			return i
		}, evidence.OriginLocalNetfilter, evidence.MechanismRefusedFilter, evidence.Proven},
		{"the rule has a limit", func() *evidence.Incident {
			i := told(refusal(0))
			i.At = rules("tcp dport 8080 limit rate over 5/second reject with tcp reset")
			return i
		}, evidence.OriginLocalNetfilter, evidence.MechanismRefusedRateLimit, evidence.Proven},
		{"the rule is for another port", func() *evidence.Incident {
			i := told(refusal(0))
			i.At = rules("tcp dport 22-25 reject with tcp reset")
			return i
		}, evidence.OriginLocalNetfilter, evidence.MechanismRefusedFilter, evidence.Likely},
		{"the segment was dropped by netfilter", func() *evidence.Incident { return told(refusal(0), drop) },
			evidence.OriginLocalNetfilter, evidence.MechanismRefusedFilter, evidence.Proven},
		{"netfilter itself says so", func() *evidence.Incident {
			return told(refusal(0), evidence.KernelEvent{Kind: evidence.FirewallReject, Time: atMS(.1), Local: server, Remote: refusal(0)[0].src, Trigger: drop.Trigger})
		}, evidence.OriginLocalNetfilter, evidence.MechanismRefusedFilter, evidence.Proven},
		{"events came too fast", func() *evidence.Incident {
			i := told(refusal(0))
			i.Suppressed = []evidence.KernelSuppressed{{Kind: evidence.ResetSent, Port: 8080, From: start, To: atMS(50), Count: 3}}
			return i
		}, evidence.OriginLocalKernel, evidence.MechanismRefused, evidence.Possible},
		{"a kernel without reasons", func() *evidence.Incident {
			i := told(refusal(0))
			i.KernelLevel.Name = evidence.LevelTuples
			return i
		}, evidence.OriginLocalKernel, evidence.MechanismRefused, evidence.Possible},
		{"an open socket's RST that the kernel does not know", func() *evidence.Incident { return told(served(true, activeRST)) },
			evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := one(t, tt.inc()).Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Confidence != tt.confidence {
				t.Errorf("%s/%s %s, want %s/%s %s: %s", c.Origin, c.Mechanism, c.Confidence, tt.origin, tt.mechanism, tt.confidence, c.Sentence)
			}
		})
	}
}

// TestRateLimit: a port that accepts and refuses in turns has a limit; one that
// refuses for a while was restarted.
func TestRateLimit(t *testing.T) {
	accepted := func(n int) []pkt {
		src := netip.AddrPortFrom(client.Addr(), uint16(42000+n))
		ms := float64(10*n) + 5
		return []pkt{{ms: ms, src: src, dst: server, flags: evidence.SYN, seq: 100, dir: evidence.Received},
			{ms: ms + .1, src: server, dst: src, flags: evidence.SYN | evidence.ACK, seq: 7, ack: 101, dir: evidence.Sent}}
	}
	var turns, gap []pkt
	for n := range 6 {
		turns = append(append(turns, refusal(n)...), accepted(n)...)
		if n > 1 && n < 4 {
			gap = append(gap, refusal(n)...)
		} else {
			gap = append(gap, accepted(n)...)
		}
	}
	for _, f := range Judge(&evidence.Incident{Window: window(turns...)}).Flows {
		if c := f.Verdict.Claim(); c.Origin != evidence.OriginLocalNetfilter || c.Mechanism != evidence.MechanismRefusedRateLimit || c.Cause != evidence.CausePolicy {
			t.Errorf("%s/%s %s: %s", c.Origin, c.Mechanism, c.Cause, c.Sentence)
		}
	}
	for _, f := range Judge(&evidence.Incident{Window: window(gap...)}).Flows {
		if c := f.Verdict.Claim(); c.Origin != evidence.OriginLocalKernel || c.Cause != evidence.CauseProcessDown {
			t.Errorf("%s/%s %s: %s", c.Origin, c.Mechanism, c.Cause, c.Sentence)
		}
	}
}

func TestPortFits(t *testing.T) {
	tests := []struct {
		rule string
		port uint16
		want bool
	}{
		{"tcp dport 443 reject with tcp reset", 443, true},
		{"tcp dport 443 reject with tcp reset", 80, false},
		{"tcp dport { 80, 8000-8090 } reject with tcp reset", 8080, true},
		{"tcp dport { 80, 8000-8090 } reject with tcp reset", 81, false},
		{"tcp dport != 22 reject with tcp reset", 80, true},
		{"tcp dport @web reject with tcp reset", 80, true},
		{"ip saddr 10.0.0.0/8 reject with tcp reset", 80, true},
	}
	for _, tt := range tests {
		if got := portFits(tt.rule, "dport", tt.port); got != tt.want {
			t.Errorf("%q fits %d: %v", tt.rule, tt.port, got)
		}
	}
}
