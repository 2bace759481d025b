package verdict

import (
	"net/netip"
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

const rstAck = evidence.RST | evidence.ACK

// TestRules holds, for each rule, a case in which it must fire and the nearest
// case in which it must not.
func TestRules(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	abortBySrv := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, id: 8}
	abortByCli := pkt{ms: 9, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: in, id: 4}
	finBySrv := pkt{ms: 5, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: 501, ack: 151, dir: out}
	ackFin := pkt{ms: 6, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 502, dir: in}
	late := pkt{ms: 1000, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 502, payload: 40, dir: in}
	tests := []struct {
		name       string
		packets    []pkt
		grown      map[string]uint64
		lost       uint64
		origin     evidence.Origin
		mechanism  evidence.Mechanism
		confidence evidence.Confidence
		benign     bool
	}{
		{"refused here, counted, no listener", []pkt{
			{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: in},
			{ms: 1, src: server, dst: client, flags: rstAck, seq: 0, ack: 101, dir: out},
		}, map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismRefusedListener, evidence.Proven, false},
		{"refused here, counters unknown", []pkt{
			{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: in},
			{ms: 1, src: server, dst: client, flags: rstAck, seq: 0, ack: 101, dir: out},
		}, nil, 0, evidence.OriginLocalKernel, evidence.MechanismRefused, evidence.Possible, false},
		{"refused by something that TCP did not count", []pkt{
			{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: in},
			{ms: 1, src: server, dst: client, flags: rstAck, seq: 0, ack: 101, dir: out},
		}, map[string]uint64{"Tcp.OutRsts": 0}, 0, evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},
		{"refused by the peer", []pkt{
			{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: out},
			{ms: 1, src: server, dst: client, flags: rstAck, seq: 0, ack: 101, dir: in},
		}, nil, 0, evidence.OriginPeerHost, evidence.MechanismRefused, evidence.Possible, false},
		{"a RST to a SYN that acknowledges something else", []pkt{
			{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: out},
			{ms: 1, src: server, dst: client, flags: rstAck, seq: 0, ack: 77, dir: in},
		}, nil, 0, evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},

		{"a process here closed with unread data", served(true, abortBySrv),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}, 0,
			evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Proven, false},
		{"as before, but packets were lost", served(true, abortBySrv),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}, 3,
			evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Likely, false},
		{"a timer may have aborted", served(true, abortBySrv),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnData": 1, "TcpExt.TCPAbortOnTimeout": 1}, 0,
			evidence.OriginLocalHost, evidence.MechanismActiveAbort, evidence.Likely, false},
		{"the peer aborted", served(true, abortByCli), nil, 0,
			evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Likely, false},
		{"not the sender's next sequence number", served(true,
			pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 499, ack: 151, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},
		{"a TTL that the peer never has", served(true,
			pkt{ms: 9, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: in, ttl: 61}), nil, 0,
			evidence.OriginMiddleboxFar, evidence.MechanismInjected, evidence.Possible, false},

		{"passive after the request was acknowledged", served(true,
			pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismNoSocket, evidence.Proven, false},
		{"passive at the end of the handshake, no overflow counted", handshake(pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.ListenOverflows": 0}, 0, evidence.OriginLocalKernel, evidence.MechanismNoSocket, evidence.Likely, false},
		{"passive at the end of the handshake, overflow counted", handshake(pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.ListenOverflows": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismQueueOverflow, evidence.Likely, false},
		{"passive in mid-flow after data", served(true,
			pkt{ms: 5, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 10, dir: out},
			pkt{ms: 8, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 511, payload: 10, dir: in},
			pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 511, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismNoSocket, evidence.Proven, false},
		{"passive, but the sequence is not the trigger's acknowledgment", served(true,
			pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 777, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},
		{"a filter's reject: TOS 0 where the trigger has one", served(true,
			pkt{ms: 5, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 10, dir: out},
			pkt{ms: 8, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 511, payload: 10, dir: in, tos: 0x10},
			pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 511, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},

		{"late data after a close", served(true, finBySrv, ackFin, late,
			pkt{ms: 1001, src: server, dst: client, flags: evidence.RST, seq: 502, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismLateData, evidence.Proven, false},
		{"RST after FIN with nothing outstanding", served(true, finBySrv, ackFin,
			pkt{ms: 7, src: client, dst: server, flags: rstAck, seq: 151, ack: 502, dir: in}), nil, 0,
			evidence.OriginPeerProcess, evidence.MechanismAfterFIN, evidence.Likely, true},
		{"a FIN for a connection that this host does not know", []pkt{
			{ms: 1, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 501, dir: in},
			{ms: 2, src: server, dst: client, flags: evidence.RST, seq: 501, dir: out},
		}, map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismNoSocket, evidence.Proven, false},
		{"the last ACK after both FINs meets no socket", served(true, finBySrv,
			pkt{ms: 6, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 151, ack: 502, dir: in},
			pkt{ms: 7, src: server, dst: client, flags: evidence.RST, seq: 502, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1}, 0, evidence.OriginLocalKernel, evidence.MechanismAfterFIN, evidence.Likely, true},
		{"RST after FIN while data is outstanding", served(true,
			pkt{ms: 5, src: server, dst: client, flags: evidence.FIN | evidence.ACK, seq: 501, ack: 151, payload: 900, dir: out},
			pkt{ms: 7, src: client, dst: server, flags: rstAck, seq: 151, ack: 501, dir: in}), nil, 0,
			evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Likely, false},
		{"RST after the peer's FIN by a side whose receive buffer had filled up", served(true,
			pkt{ms: 5, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 900, dir: in},
			pkt{ms: 6, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 1051, dir: out, window: 100},
			pkt{ms: 7, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 1051, ack: 501, dir: in},
			pkt{ms: 8, src: server, dst: client, flags: rstAck, seq: 501, ack: 1052, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}, 0, evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Proven, false},
		{"RST that acknowledges data and the peer's FIN at once: closed with unread data", served(true,
			pkt{ms: 5, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 900, dir: in},
			pkt{ms: 6, src: client, dst: server, flags: evidence.FIN | evidence.ACK, seq: 1051, ack: 501, dir: in},
			pkt{ms: 7, src: server, dst: client, flags: rstAck, seq: 501, ack: 1052, dir: out}),
			map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}, 0, evidence.OriginLocalProcess, evidence.MechanismUnread, evidence.Proven, false},

		{"routed", served(true,
			pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: in, iface: 3},
			pkt{ms: 9.1, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, ttl: 63}),
			map[string]uint64{"Tcp.OutRsts": 0}, 0, evidence.OriginForwarded, evidence.MechanismActiveAbort, evidence.Likely, false},
		{"routed by a busy host", served(true,
			pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: in, iface: 3},
			pkt{ms: 20, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, ttl: 63}),
			map[string]uint64{"Tcp.OutRsts": 0}, 0, evidence.OriginForwarded, evidence.MechanismActiveAbort, evidence.Likely, false},
		{"came in for a flow that is routed, and was not seen leaving", []pkt{
			{ms: 1, src: client, dst: server, flags: evidence.ACK, seq: 101, ack: 501, payload: 9, dir: in, id: 3},
			{ms: 1.1, src: client, dst: server, flags: evidence.ACK, seq: 101, ack: 501, payload: 9, dir: out, iface: 3, id: 3},
			{ms: 2, src: client, dst: server, flags: rstAck, seq: 110, ack: 501, dir: in, id: 4},
		}, nil, 0, evidence.OriginForwarded, evidence.MechanismActiveAbort, evidence.Possible, false},
		{"direction unknown", served(true,
			pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.DirectionUnknown}), nil, 0,
			evidence.OriginUnknown, evidence.MechanismUnknown, evidence.Uncertain, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inc := &evidence.Incident{Window: window(tt.packets...)}
			if tt.grown != nil {
				counters(inc, tt.grown)
			}
			if tt.lost > 0 {
				inc.Window.Gaps = []evidence.Gap{{Lost: tt.lost}}
			}
			f := one(t, inc)
			c := f.Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Confidence != tt.confidence || c.Benign != tt.benign {
				t.Errorf("%s/%s %s benign=%v, want %s/%s %s benign=%v\n%s", c.Origin, c.Mechanism, c.Confidence, c.Benign,
					tt.origin, tt.mechanism, tt.confidence, tt.benign, c.Sentence)
			}
			if c.Confidence == evidence.Uncertain && c.Settle == "" {
				t.Error("an unknown verdict must say what would settle it")
			}
			if len(f.Verdict.Findings()) == 0 {
				t.Error("no finding")
			}
		})
	}
}

// TestNATIsForwarding: a router that translates sends the RST under its own
// address; it must not be accused of having made it.
func TestNATIsForwarding(t *testing.T) {
	outside := netip.MustParseAddrPort("192.0.2.1:8080")
	inc := &evidence.Incident{Window: window(
		pkt{ms: 0, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Received, iface: 3},
		pkt{ms: 0.05, src: outside, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent},
	)}
	counters(inc, map[string]uint64{"Tcp.OutRsts": 0})
	for _, f := range Judge(inc).Flows {
		if c := f.Verdict.Claim(); c.Origin != evidence.OriginForwarded {
			t.Errorf("%s judged %s: %s", f.String(), c.Origin, c.Sentence)
		}
		if f.Local.IsValid() {
			t.Errorf("%s has a local end %v", f.String(), f.Local)
		}
	}
}

// TestOwner: a listener's owner is named on the server's side only, and not
// where several processes share the port.
func TestOwner(t *testing.T) {
	app, other := &evidence.Owner{PID: 7, Comm: "app"}, &evidence.Owner{PID: 8, Comm: "other"}
	listen := func(o *evidence.Owner) evidence.Socket {
		return evidence.Socket{State: "listen", Local: netip.MustParseAddrPort("0.0.0.0:8080"), Owner: o}
	}
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent}
	tests := []struct {
		name    string
		sockets []evidence.Socket
		want    *evidence.Owner
	}{
		{"the listener's", []evidence.Socket{listen(app)}, app},
		{"two processes on the port", []evidence.Socket{listen(app), listen(other)}, nil},
		{"the flow's own socket wins", []evidence.Socket{listen(app), {State: "established", Local: server, Remote: client, Owner: other}}, other},
		{"another client's socket", []evidence.Socket{{State: "established", Local: netip.MustParseAddrPort("10.0.0.1:9"), Remote: client, Owner: app}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := one(t, &evidence.Incident{Window: window(served(true, abort)...), At: &evidence.Snapshot{Sockets: tt.sockets}})
			if f.Owner != tt.want {
				t.Errorf("owner %v, want %v", f.Owner, tt.want)
			}
		})
	}
}

func TestOneSegmentOnTwoInterfacesIsOne(t *testing.T) {
	packets := served(true)
	for _, p := range served(true) {
		p.iface, p.ms = 3, p.ms+0.01
		packets = append(packets, p)
	}
	inc := &evidence.Incident{Window: window(append(packets,
		pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8})...)}
	if c := one(t, inc).Verdict.Claim(); c.Mechanism != evidence.MechanismActiveAbort {
		t.Errorf("mechanism %s: %s", c.Mechanism, c.Sentence)
	}
}

func TestReusedTupleIsANewFlow(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	again := []pkt{
		{ms: 20, src: client, dst: server, flags: evidence.SYN, seq: 9000, dir: evidence.Received},
		{ms: 21, src: server, dst: client, flags: rstAck, seq: 0, ack: 9001, dir: evidence.Sent},
	}
	inc := &evidence.Incident{Window: window(append(served(true, abort), again...)...)}
	j := Judge(inc)
	if j.FlowsTotal != 2 || j.FlowsImplicated != 2 {
		t.Fatalf("%d flows, %d implicated, want 2 and 2", j.FlowsTotal, j.FlowsImplicated)
	}
	if c := j.Flows[1].Verdict.Claim(); c.Mechanism != evidence.MechanismRefused {
		t.Errorf("the second flow is %s", c.Mechanism)
	}
}

func TestTimelineTellsTheStory(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	f := one(t, &evidence.Incident{Window: window(served(true, abort)...)})
	var flags []string
	for _, s := range f.Timeline {
		flags = append(flags, s.Flags)
	}
	if got, want := strings.Join(flags, " "), "SYN SYN_ACK PSH_ACK RST_ACK"; got != want {
		t.Errorf("timeline %q, want %q", got, want)
	}
	if line := f.Timeline[3].Line; !strings.HasPrefix(line, "+9.000ms > RST_ACK") {
		t.Errorf("line %q", line)
	}
}

func TestIncidentVerdict(t *testing.T) {
	firing := evidence.Firing{Trigger: "listen", Expression: "12 overflows in 10 s", Listeners: []evidence.Socket{{
		State: "listen", Local: server, RecvQueue: 129, SendQueue: 128, Owner: &evidence.Owner{PID: 7, Comm: "app"},
	}}}
	inc := &evidence.Incident{Firings: []evidence.Firing{firing}, Window: window()}
	counters(inc, map[string]uint64{"TcpExt.ListenOverflows": 12})
	c := Judge(inc).Verdict.Claim()
	if c.Mechanism != evidence.MechanismQueueOverflow || c.Confidence != evidence.Proven || !strings.Contains(c.Sentence, "app[7] on 10.0.0.1:8080") {
		t.Errorf("%+v", c)
	}
	empty := Judge(&evidence.Incident{})
	if c := empty.Verdict.Claim(); c.Confidence != evidence.Uncertain {
		t.Errorf("an empty incident claims %+v", c)
	}
}

func TestMixedIncidentIsToldAsMixed(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 8}
	other := netip.MustParseAddrPort("10.0.0.7:50000")
	refusedSYN := []pkt{
		{ms: 20, src: other, dst: server, flags: evidence.SYN, seq: 9000, dir: evidence.Received},
		{ms: 21, src: server, dst: other, flags: rstAck, seq: 0, ack: 9001, dir: evidence.Sent},
	}
	v := Judge(&evidence.Incident{Window: window(append(served(true, abort), refusedSYN...)...)}).Verdict
	if s := v.Claim().Sentence; !strings.Contains(s, "mixed") {
		t.Errorf("sentence %q", s)
	}
}
