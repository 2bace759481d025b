package verdict

import (
	"net/netip"
	"testing"

	"tcpcoroner/evidence"
)

// TestSilence: flows that failed without a RST.
func TestSilence(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	syn := func(ms float64, d evidence.Direction) pkt {
		return pkt{ms: ms, src: client, dst: server, flags: evidence.SYN, seq: 100, dir: d}
	}
	other := netip.AddrPortFrom(client.Addr(), 41000)
	accepted := []pkt{{ms: 1, src: other, dst: server, flags: evidence.SYN, seq: 9, dir: out},
		{ms: 2, src: server, dst: other, flags: evidence.SYN | evidence.ACK, seq: 3, ack: 10, dir: in}}
	big := func(ms float64, id uint16) pkt {
		return pkt{ms: ms, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 1448, dir: out, id: id}
	}
	stuck := append(served(false), big(5, 4), big(210, 5), big(620, 6), big(1440, 7))
	full := &evidence.Snapshot{Conntrack: &evidence.Conntrack{Count: 100, Max: 100}}
	queue := &evidence.Snapshot{Sockets: []evidence.Socket{{State: "listen", Local: server, RecvQueue: 5, SendQueue: 4}}}
	routing := new(evidence.Snapshot)
	*routing = *full
	routing.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	tests := []struct {
		name      string
		packets   []pkt
		at        *evidence.Snapshot
		grown     map[string]uint64
		flows     int
		mechanism evidence.Mechanism
		party     evidence.Party
		cause     evidence.Cause
	}{
		{"a SYN that nobody answers", []pkt{syn(0, out), syn(1000, out), syn(3000, out)}, nil, nil, 1, evidence.MechanismSilent, evidence.Network, evidence.CausePathDrop},
		{"a SYN that was answered the second time", []pkt{syn(0, out), syn(1000, out), {ms: 1001, src: server, dst: client, flags: evidence.SYN | evidence.ACK, seq: 3, ack: 101, dir: in}},
			nil, nil, 0, "", "", ""},
		{"a SYN, once", []pkt{syn(0, out)}, nil, nil, 0, "", "", ""},
		{"others are accepted", append([]pkt{syn(0, out), syn(1000, out)}, accepted...), nil, nil, 1, evidence.MechanismQueueOverflow, evidence.Server, evidence.CauseBacklogFull},
		{"it came in, and the queue is full", []pkt{syn(0, in), syn(1000, in)}, queue, map[string]uint64{"TcpExt.ListenOverflows": 3}, 1,
			evidence.MechanismQueueOverflow, evidence.Server, evidence.CauseBacklogFull},
		{"it came in, and the connection table is full", []pkt{syn(0, in), syn(1000, in)}, full, nil, 1, evidence.MechanismConntrackFull, evidence.Server, evidence.CauseConntrackFull},
		{"a full connection table on the way", []pkt{syn(0, in), syn(1000, in)}, routing, nil, 1, evidence.MechanismConntrackFull, evidence.Network, evidence.CauseConntrackFull},
		{"large segments vanish", stuck, nil, nil, 1, evidence.MechanismMTUBlackhole, evidence.Network, evidence.CausePathDrop},
		{"a request without an answer, and a second later FIN", append(served(false), pkt{ms: 1010, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 501, dir: out, id: 4}),
			nil, nil, 1, evidence.MechanismSilent, evidence.Client, evidence.CauseTimeout},
		{"it had an answer", append(served(false), pkt{ms: 6, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 9, dir: in},
			pkt{ms: 1010, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 510, dir: out, id: 4}), nil, nil, 0, "", "", ""},
		{"they got through at last", append(stuck, pkt{ms: 1500, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 1599, dir: in}), nil, nil, 0, "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inc := &evidence.Incident{Window: window(tt.packets...)}
			if tt.grown != nil {
				counters(inc, tt.grown)
			}
			if tt.at != nil {
				inc.At = tt.at
			}
			j := Judge(inc)
			if len(j.Flows) != tt.flows {
				t.Fatalf("%d flows, want %d", len(j.Flows), tt.flows)
			}
			for _, f := range j.Flows {
				c := f.Verdict.Claim()
				if c.Origin != evidence.OriginNone || c.Mechanism != tt.mechanism || c.Party != tt.party || c.Cause != tt.cause || f.Reset != nil {
					t.Errorf("%s/%s party %s cause %s, want %s, %s, %s: %s", c.Origin, c.Mechanism, c.Party, c.Cause, tt.mechanism, tt.party, tt.cause, c.Sentence)
				}
			}
		})
	}
}

// TestGaveUp: the kernel's ETIMEDOUT proves that nobody answered, and whose socket
// it was.
func TestGaveUp(t *testing.T) {
	all := served(false)
	for i, ms := range []float64{5, 210, 620, 1440} {
		all = append(all, pkt{ms: ms, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 90, dir: evidence.Sent, id: uint16(i)})
	}
	gaveUp := evidence.KernelEvent{Kind: evidence.SocketError, Errno: errTimedOut, Time: atMS(2500), Local: client, Remote: server, Owner: app}
	c := one(t, told(all, gaveUp)).Verdict.Claim()
	if c.Mechanism != evidence.MechanismSilent || c.Confidence != evidence.Proven || c.Process == nil {
		t.Errorf("%s %s %v: %s", c.Mechanism, c.Confidence, c.Process, c.Sentence)
	}
	gaveUp.Errno = errConnReset
	if c := one(t, told(all, gaveUp)).Verdict.Claim(); c.Confidence == evidence.Proven {
		t.Errorf("proven by another error: %s", c.Sentence)
	}
}

// TestSilentGeneration: the ports of a connection that failed in silence are used
// again, and that one is served.
func TestSilentGeneration(t *testing.T) {
	all := append(served(false), pkt{ms: 1010, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 501, dir: evidence.Sent, id: 4})
	for _, p := range served(false, pkt{ms: 5, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 9, dir: evidence.Received}) {
		if p.ms += 2000; p.src == client {
			p.seq += 77000
		} else {
			p.ack += 77000
		}
		all = append(all, p)
	}
	j := Judge(&evidence.Incident{Window: window(all...)})
	if len(j.Flows) > 1 {
		t.Errorf("%d flows", len(j.Flows))
	}
	for _, f := range j.Flows {
		if f.Packets != 6 {
			t.Errorf("a flow of %d packets: %s", f.Packets, f.Verdict)
		}
	}
}

// TestSilentStorm: their number is bounded, and resets are judged beside them.
func TestSilentStorm(t *testing.T) {
	var all []pkt
	for i := range 2 * maxSilent {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)}), 40000)
		for _, ms := range []float64{0, 1000} {
			all = append(all, pkt{ms: ms + float64(i)/100, src: from, dst: server, flags: evidence.SYN, seq: 1, dir: evidence.Received})
		}
	}
	j := Judge(&evidence.Incident{Window: window(append(served(true, activeRST), all...)...)})
	if n := len(j.Flows); n != maxSilent+1 {
		t.Errorf("%d flows", n)
	}
}
