package verdict

import (
	"net/netip"
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

// on repeats packets as another interface or namespace sees them, d milliseconds
// later and in another direction.
func on(packets []pkt, d float64, netns uint16, iface uint32, again uint8, dir func(evidence.Direction) evidence.Direction) []pkt {
	all := []pkt{}
	for _, p := range packets {
		p.ms, p.netns, p.iface, p.again, p.dir = p.ms+d, netns, iface, again, dir(p.dir)
		all = append(all, p)
	}
	return all
}

func same(d evidence.Direction) evidence.Direction { return d }

func crossed(d evidence.Direction) evidence.Direction {
	if d == evidence.Sent {
		return evidence.Received
	}
	return evidence.Sent
}

func always(d evidence.Direction) func(evidence.Direction) evidence.Direction {
	return func(evidence.Direction) evidence.Direction { return d }
}

// TestSightings: what the interfaces of one host show of one packet.
func TestSightings(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	came := pkt{ms: 9, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: evidence.Received, id: 4}
	flow := served(true, abort)
	peer := served(true, came)
	counted := map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}
	tests := []struct {
		name      string
		packets   []pkt
		origin    evidence.Origin
		mechanism evidence.Mechanism
		direction evidence.Direction
	}{
		{"a bridge and its port, marked", append(flow, on(flow, .01, 0, 3, 1, same)...),
			evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Sent},
		{"a bridge and its port, not marked", append(flow, on(flow, .01, 0, 3, 0, same)...),
			evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Sent},
		{"sent, and back in on the other end of a veth", append(flow, on(flow[5:], .01, 0, 3, 1, crossed)...),
			evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Sent},
		{"received on a port for another address, then on the bridge",
			append(on(peer, -.01, 0, 3, 0, func(d evidence.Direction) evidence.Direction {
				if d == evidence.Received {
					return evidence.Elsewhere
				}
				return d
			}), on(peer, 0, 0, 2, 1, same)...), evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Received},
		{"received, sent into a veth, received at its other end: it has arrived",
			append(append(peer, on(peer[5:], .01, 0, 3, 1, crossed)...), on(peer[5:], .02, 0, 4, 2, same)...),
			evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Received},
		{"bridged through", append(peer, on(peer, .01, 0, 3, 1, crossed)...),
			evidence.OriginForwarded, evidence.MechanismActiveAbort, evidence.Received},
		{"bridged through, under another host's link-layer address",
			append(on(peer, 0, 0, 2, 0, always(evidence.Elsewhere)), on(peer, .01, 0, 3, 1, always(evidence.Sent))...),
			evidence.OriginForwarded, evidence.MechanismActiveAbort, evidence.Received},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inc := &evidence.Incident{Window: window(tt.packets...)}
			counters(inc, counted)
			if n := inc.Window.ResetCount; n != 1 {
				t.Errorf("%d resets, want 1", n)
			}
			f := one(t, inc)
			if c := f.Verdict.Claim(); c.Origin != tt.origin || c.Mechanism != tt.mechanism || f.Reset.Direction != tt.direction {
				t.Errorf("%s/%s %v, want %s/%s %v: %s", c.Origin, c.Mechanism, f.Reset.Direction, tt.origin, tt.mechanism, tt.direction, c.Sentence)
			}
		})
	}
}

// TestNamespaces: a flow is told once, from the namespace that knows best.
func TestNamespaces(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	came := pkt{ms: 9, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: evidence.Received, id: 4}
	inside := on(served(true, abort), 0, 1, 2, 0, same)
	insidePeer := on(served(true, came), 0, 1, 2, 0, same)
	// The host sees the container's packets come in on the veth, and go out.
	hosts := append(on(inside, .01, 0, 3, 0, crossed), on(inside, .02, 0, 2, 1, same)...)
	hostsPeer := append(on(insidePeer, -.02, 0, 2, 0, same), on(insidePeer, -.01, 0, 3, 1, crossed)...)
	tests := []struct {
		name      string
		packets   []pkt
		origin    evidence.Origin
		namespace uint16
		local     bool
		sentence  string
	}{
		{"a container's process sent it", append(inside, hosts...), evidence.OriginLocalProcess, 1, true, "this host (namespace blue) aborted"},
		{"it came in for a container", append(insidePeer, hostsPeer...), evidence.OriginPeerProcess, 1, true, "the peer"},
		{"the container is not recorded", hosts, evidence.OriginForwarded, 0, false, "only routed it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inc := &evidence.Incident{Window: window(tt.packets...)}
			// The counters of the host's namespace say nothing of the container.
			counters(inc, map[string]uint64{"Tcp.OutRsts": 0, "TcpExt.TCPAbortOnClose": 0})
			if w := inc.Window; w.ResetCount != 1 || w.SentResets != 0 || w.FlowCount != 1 || w.ResetFlowCount != 1 {
				t.Errorf("%d resets, %d sent, %d of %d flows, want one each and none sent by the host", w.ResetCount, w.SentResets, w.ResetFlowCount, w.FlowCount)
			}
			f := one(t, inc)
			c := f.Verdict.Claim()
			if c.Origin != tt.origin || f.Namespace != tt.namespace || f.Local.IsValid() != tt.local || !strings.Contains(c.Sentence, tt.sentence) {
				t.Errorf("%s in namespace %d, local end %v: %s", c.Origin, f.Namespace, f.Local, c.Sentence)
			}
			if f.Packets != 6 && tt.namespace == 1 {
				t.Errorf("%d packets, want each once", f.Packets)
			}
			if on := f.Reset.Interface; tt.namespace == 1 && on != "eth0@blue" {
				t.Errorf("interface %q", on)
			}
		})
	}
}

// TestNoListenerOfAnotherNamespace: a container's refused connection is not
// proven by the sockets of the host.
func TestNoListenerOfAnotherNamespace(t *testing.T) {
	inc := &evidence.Incident{Window: window(
		pkt{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: evidence.Received, netns: 1},
		pkt{ms: 1, src: server, dst: client, flags: rstAck, ack: 101, dir: evidence.Sent, netns: 1},
	)}
	counters(inc, map[string]uint64{"Tcp.OutRsts": 1})
	c := one(t, inc).Verdict.Claim()
	if c.Origin != evidence.OriginLocalKernel || c.Confidence != evidence.Possible || !strings.Contains(c.Sentence, "(namespace blue)") {
		t.Errorf("%+v", c)
	}
}

// TestLoopbacksOfNamespacesAreTheirOwn: equal addresses, different connections.
func TestLoopbacksOfNamespacesAreTheirOwn(t *testing.T) {
	a, b := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:80")
	var all []pkt
	for ns := range uint16(2) {
		ms := float64(ns)
		all = append(all,
			pkt{ms: ms, src: a, dst: b, flags: evidence.SYN, seq: 100 + uint32(ns), dir: evidence.Loopback, netns: ns},
			pkt{ms: ms + .1, src: b, dst: a, flags: rstAck, ack: 101 + uint32(ns), dir: evidence.Loopback, netns: ns})
	}
	inc := &evidence.Incident{Window: window(all...)}
	j := Judge(inc)
	if len(j.Flows) != 2 || j.FlowsTotal != 2 || inc.Window.ResetCount != 2 || inc.Window.SentResets != 1 {
		t.Errorf("%d flows of %d, %d resets, %d sent", len(j.Flows), j.FlowsTotal, inc.Window.ResetCount, inc.Window.SentResets)
	}
}

// TestNATPartnerOfAStorm: the other side of a translated RST is kept although its
// flow is none of those that are judged.
func TestNATPartnerOfAStorm(t *testing.T) {
	outside := netip.MustParseAddrPort("192.0.2.1:8080")
	var all []pkt
	for i := range 3000 {
		peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 40000)
		ms := float64(i)
		all = append(all,
			pkt{ms: ms, src: server, dst: peer, flags: rstAck, seq: 501 + uint32(i), ack: 151, dir: evidence.Received, iface: 3},
			pkt{ms: ms + .05, src: outside, dst: peer, flags: rstAck, seq: 501 + uint32(i), ack: 151, dir: evidence.Sent, ttl: 63})
	}
	inc := &evidence.Incident{Window: window(all...)}
	counters(inc, map[string]uint64{"Tcp.OutRsts": 0})
	if n := inc.Window.SentResets; n != 0 {
		t.Errorf("%d RSTs count as sent", n)
	}
	j := Judge(inc)
	if len(j.Flows) < 800 || j.FlowsImplicated != 6000 {
		t.Errorf("%d flows judged of %d", len(j.Flows), j.FlowsImplicated)
	}
	for _, f := range j.Flows {
		if c := f.Verdict.Claim(); c.Origin != evidence.OriginForwarded {
			t.Fatalf("%s: %s", f.String(), c.Sentence)
		}
	}
	if s := j.Verdict.String(); !strings.Contains(s, "of 6000 flows with a RST were judged") {
		t.Errorf("sentence %q", s)
	}
}

// TestGapIsDoubt: where packets were not kept, nothing outstanding is no fact.
func TestGapIsDoubt(t *testing.T) {
	inc := &evidence.Incident{Window: window(served(true,
		pkt{ms: 5, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: 501, ack: 151, dir: evidence.Sent},
		pkt{ms: 7, src: client, dst: server, flags: rstAck, seq: 151, ack: 502, dir: evidence.Received})...)}
	if c := one(t, inc).Verdict.Claim(); c.Confidence != evidence.Likely || !c.Benign {
		t.Errorf("%+v", c)
	}
	inc.Window.Gaps = []evidence.Gap{{From: start.Add(3e6), To: start.Add(6e6), Reason: "control packets only"}}
	if c := one(t, inc).Verdict.Claim(); c.Confidence != evidence.Possible {
		t.Errorf("%+v", c)
	}
}
