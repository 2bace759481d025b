package verdict

import (
	"net/netip"
	"testing"

	"tcpcoroner/evidence"
)

// peerFlow is a served request seen at the client: the server is the peer, whose
// packets have TTL 60, timestamps and a rising IP ID.
func peerFlow(more ...pkt) []pkt {
	all := append(served(false), more...)
	for i := range all {
		if all[i].src == server && all[i].ttl == 0 {
			all[i].ttl = 60
		}
		all[i].stamps = all[i].flags&evidence.RST == 0 || all[i].stamps
		if all[i].mac == 0 {
			all[i].mac = 1
			if all[i].src == server {
				all[i].mac = 2
			}
		}
	}
	return all
}

// TestPassport: a RST that came in is its claimed sender's, or not.
func TestPassport(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	own := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: in, id: 8, stamps: true}
	change := func(f func(*pkt)) pkt { p := own; f(&p); return p }
	answer := pkt{ms: 9.2, src: server, dst: client, flags: evidence.RST, seq: 501, dir: in}
	ask := pkt{ms: 9, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 501, payload: 10, dir: out}
	later := pkt{ms: 90, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 10, dir: in, id: 9}
	tests := []struct {
		name       string
		packets    []pkt
		origin     evidence.Origin
		mechanism  evidence.Mechanism
		confidence evidence.Confidence
		cause      evidence.Cause
	}{
		{"its own", peerFlow(own), evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Likely, evidence.CauseAppAbort},
		{"another stack's TTL, no timestamps", peerFlow(change(func(p *pkt) { p.ttl, p.stamps, p.id = 113, false, 777 })),
			evidence.OriginMiddlebox, evidence.MechanismInjected, evidence.Likely, evidence.CauseForged},
		{"no timestamps, another MAC", peerFlow(change(func(p *pkt) { p.stamps, p.mac, p.id = false, 9, 777 })),
			evidence.OriginMiddlebox, evidence.MechanismInjected, evidence.Likely, evidence.CauseForged},
		{"only the TTL differs: a route changed", peerFlow(change(func(p *pkt) { p.ttl = 59 })),
			evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Possible, evidence.CauseAppAbort},
		{"only the timestamps are missing", peerFlow(change(func(p *pkt) { p.stamps = false })),
			evidence.OriginPeerProcess, evidence.MechanismActiveAbort, evidence.Likely, evidence.CauseAppAbort},
		{"the peer went on, and the RST has no timestamps", peerFlow(change(func(p *pkt) { p.stamps = false }), later),
			evidence.OriginMiddlebox, evidence.MechanismInjected, evidence.Possible, evidence.CauseForged},
		{"guesses that follow each other", peerFlow(change(func(p *pkt) { p.stamps = false }),
			change(func(p *pkt) { p.ms, p.seq, p.stamps = 9.1, 501+1460, false })),
			evidence.OriginMiddlebox, evidence.MechanismInjected, evidence.Possible, evidence.CauseForged},
		{"a RST with URG and without timestamps", peerFlow(change(func(p *pkt) { p.flags, p.stamps = rstAck|evidence.URG, false })),
			evidence.OriginMiddlebox, evidence.MechanismInjected, evidence.Possible, evidence.CauseForged},
		{"the peer's application sets a TTL of its own", func() []pkt {
			all := peerFlow(ask, answer)
			for i := range all {
				if all[i].src == server && all[i].flags&evidence.RST == 0 {
					all[i].ttl = 1
				}
			}
			return all
		}(), evidence.OriginPeerKernel, evidence.MechanismNoSocket, evidence.Likely, evidence.CauseStateLost},
		{"an answer from nearer than the peer", peerFlow(ask, func() pkt { p := answer; p.ttl = 63; return p }()),
			evidence.OriginMiddleboxNear, evidence.MechanismNoSocket, evidence.Likely, evidence.CauseStateLost},
		{"an answer from the peer", peerFlow(ask, answer), evidence.OriginPeerKernel, evidence.MechanismNoSocket, evidence.Likely, evidence.CauseStateLost},
		{"blind, beside the window, and both went on", peerFlow(change(func(p *pkt) { p.seq, p.stamps = 900, false }), later,
			pkt{ms: 95, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 511, dir: out}),
			evidence.OriginMiddlebox, evidence.MechanismInjectedBlind, evidence.Likely, evidence.CauseForged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := one(t, &evidence.Incident{Window: window(tt.packets...)}).Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Confidence != tt.confidence || c.Cause != tt.cause {
				t.Errorf("%s/%s %s %s, want %s/%s %s %s: %s", c.Origin, c.Mechanism, c.Confidence, c.Cause,
					tt.origin, tt.mechanism, tt.confidence, tt.cause, c.Sentence)
			}
			if c.Settle == "" {
				t.Error("nothing would settle it")
			}
		})
	}
}

// TestForgedHere: a RST that left in the name of a host whose packets come in.
func TestForgedHere(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	routed := func(rst pkt) *evidence.Incident {
		var all []pkt
		for _, p := range served(true) {
			p.dir = in
			all = append(all, p)
			p.dir, p.iface, p.ms, p.ttl = out, 3, p.ms+.01, 63
			all = append(all, p)
		}
		return &evidence.Incident{Window: window(append(all, rst)...)}
	}
	filter := pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: out, window: none, df: true}
	program := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, id: 99, ttl: 113}
	for _, tt := range []struct {
		rst    pkt
		origin evidence.Origin
		party  evidence.Party
	}{{filter, evidence.OriginLocalNetfilter, evidence.Network}, {program, evidence.OriginLocalOther, evidence.Network}} {
		f := one(t, routed(tt.rst))
		if c := f.Verdict.Claim(); c.Origin != tt.origin || c.Party != tt.party || f.Local.IsValid() {
			t.Errorf("%s party %s local %v: %s", c.Origin, c.Party, f.Local, c.Sentence)
		}
	}
}

// TestProvenPeer: all marks of the peer's socket, and this host's TCP took the RST.
func TestProvenPeer(t *testing.T) {
	own := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Received, id: 8, stamps: true}
	took := evidence.KernelEvent{Kind: evidence.ResetReceived, Time: atMS(9), Local: client, Remote: server, RcvNxt: 501, HasNumbers: true, State: "established"}
	c := one(t, told(peerFlow(own), took)).Verdict.Claim()
	if c.Origin != evidence.OriginPeerProcess || c.Confidence != evidence.Proven || c.MechanismConfidence != evidence.Likely {
		t.Errorf("%s %s, mechanism %s", c.Origin, c.Confidence, c.MechanismConfidence)
	}
	own.stamps = false
	if c := one(t, told(peerFlow(own), took)).Verdict.Claim(); c.Confidence == evidence.Proven {
		t.Errorf("proven without timestamps: %s", c.Sentence)
	}
}

// TestTranslationLost: the same connection goes on under its untranslated address.
func TestTranslationLost(t *testing.T) {
	inside := netip.MustParseAddrPort("192.168.7.7:40000")
	in, out := evidence.Received, evidence.Sent
	all := served(true,
		pkt{ms: 3000, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 70, dir: out},
		pkt{ms: 3000.1, src: client, dst: server, flags: evidence.RST, seq: 151, dir: in},
		pkt{ms: 4000, src: inside, dst: server, flags: evidence.ACK | evidence.FIN, seq: 151, ack: 501, dir: in},
		pkt{ms: 4000.1, src: server, dst: inside, flags: evidence.RST, seq: 501, dir: out})
	j := Judge(&evidence.Incident{Window: window(all...)})
	if len(j.Flows) != 1 {
		t.Fatalf("%d flows, want one connection", len(j.Flows))
	}
	if c := j.Flows[0].Verdict.Claim(); c.Mechanism != evidence.MechanismStateLostNAT || c.Party != evidence.Network || c.Cause != evidence.CauseStateLost {
		t.Errorf("%s %s %s: %s", c.Mechanism, c.Party, c.Cause, c.Sentence)
	}
	all[7].seq, all[8].ack = 999, 1000
	if n := len(Judge(&evidence.Incident{Window: window(all...)}).Flows); n != 2 {
		t.Errorf("%d flows, want two that have nothing to do with each other", n)
	}
}

// TestTranslationLostHere: the same on the translator, which sees both names of the
// connection from the beginning.
func TestTranslationLostHere(t *testing.T) {
	inside := netip.MustParseAddrPort("192.168.7.7:40000")
	in, out := evidence.Received, evidence.Sent
	var all []pkt
	for _, p := range served(false) {
		before, after := p, p
		before.ms -= 0.1
		if p.src == client { // leaves translated
			before.src, before.dir, before.iface = inside, in, 3
		} else {
			before, after = p, p
			before.dir, after.ms, after.dst, after.dir, after.iface = in, p.ms+0.1, inside, out, 3
		}
		all = append(all, before, after)
	}
	all = append(all,
		pkt{ms: 3000, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 70, dir: in},
		pkt{ms: 3000.1, src: client, dst: server, flags: evidence.RST, seq: 151, dir: out},
		pkt{ms: 4000, src: inside, dst: server, flags: evidence.ACK | evidence.FIN, seq: 151, ack: 501, dir: in, iface: 3},
		pkt{ms: 4000.1, src: inside, dst: server, flags: evidence.ACK | evidence.FIN, seq: 151, ack: 501, dir: out, ttl: 63},
		pkt{ms: 4000.2, src: server, dst: inside, flags: evidence.RST, seq: 501, dir: in},
		pkt{ms: 4000.3, src: server, dst: inside, flags: evidence.RST, seq: 501, dir: out, iface: 3, ttl: 63})
	inc := &evidence.Incident{Window: window(all...)}
	counters(inc, map[string]uint64{"Tcp.OutRsts": 1})
	f := one(t, inc)
	c := f.Verdict.Claim()
	if c.Origin != evidence.OriginLocalKernel || c.Mechanism != evidence.MechanismStateLostNAT || c.Party != evidence.Network || c.Cause != evidence.CauseStateLost {
		t.Errorf("%s %s %s %s: %s", c.Origin, c.Mechanism, c.Party, c.Cause, c.Sentence)
	}
}

// TestTranslatorByRules: no mapping is tracked any more, but the rules that make them
// are there, and nothing of this host was ever at the address that answers.
func TestTranslatorByRules(t *testing.T) {
	nat := evidence.Chain{Family: "ip", Table: "nat", Name: "post", Type: "nat", Hook: "postrouting"}
	for name, tt := range map[string]struct {
		change func(*evidence.Incident, *evidence.Implicated)
		want   evidence.Mechanism
	}{
		"rules that translate": {nil, evidence.MechanismStateLostNAT},
		"no rules":             {func(_ *evidence.Incident, i *evidence.Implicated) { i.Rules = nil }, evidence.MechanismNoSocket},
		"rules for what this host sends itself": {func(_ *evidence.Incident, i *evidence.Implicated) {
			i.Rules.Chains[0].Hook = "output"
		}, evidence.MechanismNoSocket},
		"rules that only filter": {func(_ *evidence.Incident, i *evidence.Implicated) {
			i.Rules.Chains[0].Type = "filter"
		}, evidence.MechanismNoSocket},
		"a host that routes nothing": {func(_ *evidence.Incident, i *evidence.Implicated) {
			i.Sysctls = []evidence.Sysctl{{Name: "net.ipv4.ip_forward", Value: "0"}}
		}, evidence.MechanismNoSocket},
		"a socket was there": {func(inc *evidence.Incident, _ *evidence.Implicated) {
			inc.Kernel[0].Grave = &evidence.Grave{State: "close"}
		}, evidence.MechanismNoSocket},
		"a service was there": {func(inc *evidence.Incident, _ *evidence.Implicated) { inc.Kernel[0].LastListener = app }, evidence.MechanismNoSocket},
		"a service is there": {func(inc *evidence.Incident, _ *evidence.Implicated) {
			inc.At = &evidence.Snapshot{Sockets: []evidence.Socket{{State: "listen", Local: server, Owner: app}}}
		}, evidence.MechanismNoSocket},
	} {
		t.Run(name, func(t *testing.T) {
			e := sentEvent(func(e *evidence.KernelEvent) {
				e.Reason, e.State, e.Trigger, e.Owner, e.Actor, e.HasNumbers = "NO_SOCKET", "", strayACK, nil, nil, false
			})
			inc := told([]pkt{request, passiveRST}, e)
			implicated := &evidence.Implicated{Rules: &evidence.Ruleset{Chains: []evidence.Chain{nat}}}
			inc.After = &evidence.Snapshot{Implicated: implicated}
			if tt.change != nil {
				tt.change(inc, implicated)
			}
			c := one(t, inc).Verdict.Claim()
			if lost := c.Party == evidence.Network; c.Mechanism != tt.want || lost != (tt.want == evidence.MechanismStateLostNAT) || lost && c.PartyConfidence != evidence.Possible {
				t.Errorf("%s, party %s %s: %s", c.Mechanism, c.Party, c.PartyConfidence, c.Sentence)
			}
		})
	}
}

// TestTranslatorByTTL: what left under the address that answers now had come through
// this host, which lowered its TTL.
func TestTranslatorByTTL(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	for ttl, want := range map[uint8]evidence.Mechanism{
		63: evidence.MechanismStateLostNAT, 64: evidence.MechanismNoSocket, 1: evidence.MechanismNoSocket,
	} {
		all := served(false,
			pkt{ms: 3000, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, payload: 70, dir: in},
			pkt{ms: 3000.1, src: client, dst: server, flags: evidence.RST, seq: 151, dir: out, ttl: 64})
		for i := range all {
			if all[i].src == client && all[i].flags != evidence.RST {
				all[i].ttl = ttl
			}
		}
		inc := &evidence.Incident{Window: window(all...)}
		counters(inc, map[string]uint64{"Tcp.OutRsts": 1})
		if c := one(t, inc).Verdict.Claim(); c.Mechanism != want || (c.Party == evidence.Network && c.PartyConfidence == evidence.Likely) != (want == evidence.MechanismStateLostNAT) {
			t.Errorf("TTL %d: %s, party %s %s: %s", ttl, c.Mechanism, c.Party, c.PartyConfidence, c.Sentence)
		}
	}
}

// TestRefusedAtADistance: ports of one address may lead to different hosts. What
// refuses before it is a filter; behind it is who does not listen.
func TestRefusedAtADistance(t *testing.T) {
	port := netip.AddrPortFrom(server.Addr(), 9090)
	for name, tt := range map[string]struct {
		ttl       uint8
		origin    evidence.Origin
		mechanism evidence.Mechanism
		party     evidence.Party
		cause     evidence.Cause
	}{
		"nearer": {62, evidence.OriginMiddleboxNear, evidence.MechanismRefusedFilter, evidence.Network, evidence.CausePolicy},
		"behind": {58, evidence.OriginMiddleboxFar, evidence.MechanismRefused, evidence.Server, evidence.CauseProcessDown},
	} {
		t.Run(name, func(t *testing.T) {
			f := one(t, &evidence.Incident{Window: window(peerFlow(
				pkt{ms: 20, src: client, dst: port, flags: evidence.SYN, seq: 900, dir: evidence.Sent, id: 1},
				pkt{ms: 21, src: port, dst: client, flags: rstAck, ack: 901, dir: evidence.Received, ttl: tt.ttl})...)})
			c := f.Verdict.Claim()
			if c.Origin != tt.origin || c.Mechanism != tt.mechanism || c.Party != tt.party || c.Cause != tt.cause || c.Confidence != evidence.Possible {
				t.Errorf("%s %s, %s, party %s, cause %s: %s", c.Origin, c.Confidence, c.Mechanism, c.Party, c.Cause, c.Sentence)
			}
		})
	}
}
