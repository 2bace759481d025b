package verdict

import (
	"net/netip"
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

// TestGap: what a server that gave up can know of data that it did not get.
func TestGap(t *testing.T) {
	in, out := evidence.Received, evidence.Sent
	tail := func(ms float64, size int) pkt {
		return pkt{ms: ms, src: client, dst: server, flags: evidence.ACK | evidence.PSH, seq: 3000, ack: 501, payload: size, dir: in}
	}
	again := pkt{ms: 6, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 151, dir: out}
	abort := pkt{ms: 2010, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: out, id: 8}
	repaired := pkt{ms: 300, src: server, dst: client, flags: evidence.ACK, seq: 501, ack: 3900, dir: out}
	late := abort
	late.ack = 3900
	soon := abort
	soon.ms = 500
	for name, tt := range map[string]struct {
		packets []pkt
		cause   evidence.Cause
		mtu     bool
	}{
		"the tail of an upload came alone":       {served(true, tail(5, 900), again, abort), evidence.CausePathDrop, true},
		"a full segment came, too":               {served(true, tail(5, 1448), again, abort), evidence.CausePathDrop, false},
		"what was missing came soon":             {served(true, tail(5, 900), again, repaired, late), evidence.CauseTimeout, false},
		"the server did not wait for it":         {served(true, tail(5, 900), again, soon), evidence.CauseAppAbort, false},
		"the client fell silent after its first": {served(true, abort), evidence.CauseTimeout, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := one(t, &evidence.Incident{Window: window(tt.packets...)}).Verdict.Claim()
			if c.Cause != tt.cause || strings.Contains(c.Sentence, "MTU") != tt.mtu {
				t.Errorf("%s: %s", c.Cause, c.Sentence)
			}
			if stopped := tt.cause == evidence.CauseTimeout; stopped != strings.Contains(c.Settle, "smaller MTU") {
				t.Errorf("to settle it: %s", c.Settle)
			}
		})
	}
}

// TestUndirected: on a device that tells no direction this host's addresses do, and
// what they cannot tell is counted for nobody.
func TestUndirected(t *testing.T) {
	abort := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, id: 8}
	blind := func(packets []pkt) (all []pkt) {
		for _, p := range packets {
			p.dir = evidence.DirectionUnknown
			all = append(all, p)
		}
		return all
	}
	told := map[string]uint64{"Tcp.OutRsts": 1, "TcpExt.TCPAbortOnClose": 1}
	for name, tt := range map[string]struct {
		own    string
		origin evidence.Origin
		sure   evidence.Confidence
	}{
		"it came from here":       {"10.0.0.1", evidence.OriginLocalProcess, evidence.Likely},
		"it came to here":         {"10.0.0.9", evidence.OriginPeerProcess, evidence.Likely},
		"it passed":               {"10.0.0.7", evidence.OriginUnknown, evidence.Uncertain},
		"addresses are not known": {"", evidence.OriginUnknown, evidence.Uncertain},
	} {
		t.Run(name, func(t *testing.T) {
			inc := &evidence.Incident{Window: window(blind(served(true, abort))...)}
			counters(inc, told)
			if tt.own != "" {
				inc.At.Addresses = append(inc.At.Addresses, netip.MustParseAddr(tt.own))
			}
			if c := one(t, inc).Verdict.Claim(); c.Origin != tt.origin || c.Confidence != tt.sure {
				t.Errorf("%s %s: %s", c.Origin, c.Confidence, c.Sentence)
			}
		})
	}
	inc := &evidence.Incident{Window: window(blind(served(true, abort))...)}
	counters(inc, told)
	inc.At.Addresses = append(inc.At.Addresses, netip.MustParseAddr("10.0.0.1"))
	inc.Window.ResetCount += 3 // that were not kept
	for _, f := range one(t, inc).Verdict.Findings() {
		if f.Kind == evidence.KindCounter && strings.Contains(f.Text, "sent them all") {
			t.Errorf("more may have left: %s", f.Text)
		}
	}
	passed := pkt{ms: 20, src: netip.MustParseAddrPort("10.0.0.8:70"), dst: client, flags: evidence.RST, seq: 7}
	seen := served(true, abort)
	seen[len(seen)-1].dir = evidence.Sent
	inc = &evidence.Incident{Window: window(append(seen, passed)...)}
	counters(inc, told)
	inc.At.Addresses = append(inc.At.Addresses, netip.MustParseAddr("10.0.0.1"))
	for _, f := range Judge(inc).Flows {
		if c := f.Verdict.Claim(); c.Confidence == evidence.Proven {
			t.Errorf("proven by counters that may be of another reset: %s", c.Sentence)
		}
	}
}

// TestFilteredSYN: who swallowed a SYN that came in here.
func TestFilteredSYN(t *testing.T) {
	in := evidence.Received
	dropped := func(where string) (all []evidence.KernelEvent) {
		for _, ms := range []float64{0, 1000} {
			all = append(all, evidence.KernelEvent{Kind: evidence.SegmentDropped, Reason: "NETFILTER_DROP", Location: where, Time: atMS(ms),
				Local: server, Remote: client, Trigger: &evidence.Trigger{Flags: evidence.SYN, Seq: 100}})
		}
		return all
	}
	rule := func(text string, packets uint64) evidence.Rule {
		return evidence.Rule{Action: "drop", Text: text, Counted: true, Packets: packets}
	}
	for name, tt := range map[string]struct {
		kernel []evidence.KernelEvent
		rule   evidence.Rule
		full   bool
		grown  map[string]uint64
		cause  evidence.Cause
		sure   evidence.Confidence
	}{
		"nftables":                         {dropped("nft_do_chain"), evidence.Rule{}, false, nil, evidence.CausePolicy, evidence.Proven},
		"nftables, and the table is full":  {dropped("nft_do_chain"), evidence.Rule{}, true, nil, evidence.CausePolicy, evidence.Proven},
		"some hook, and the table is full": {dropped("nf_hook_slow"), rule("counter drop", 3), true, nil, evidence.CauseConntrackFull, evidence.Proven},
		"some hook, and no rule":           {dropped("nf_hook_slow"), evidence.Rule{}, false, map[string]uint64{}, evidence.CausePathDrop, evidence.Likely},
		"some hook, and a rule": {dropped("nf_hook_slow"), rule("-p tcp --syn drop", 3), false,
			map[string]uint64{"TcpExt.ListenDrops": 0, "TcpExt.ListenOverflows": 0}, evidence.CausePolicy, evidence.Likely},
		"a rule for the port": {nil, rule("tcp dport 8080 counter drop", 3), false,
			map[string]uint64{"TcpExt.ListenDrops": 0, "TcpExt.ListenOverflows": 0}, evidence.CausePolicy, evidence.Likely},
		"a rule for the port that matched nothing": {nil, rule("tcp dport 8080 counter drop", 0), false,
			map[string]uint64{"TcpExt.ListenDrops": 0, "TcpExt.ListenOverflows": 0}, evidence.CausePathDrop, evidence.Likely},
		"a rule for all": {nil, rule("counter drop", 3), false,
			map[string]uint64{"TcpExt.ListenDrops": 0, "TcpExt.ListenOverflows": 0}, evidence.CausePathDrop, evidence.Likely},
		"a rule, and a full queue": {nil, rule("tcp dport 8080 counter drop", 3), false,
			map[string]uint64{"TcpExt.ListenDrops": 2, "TcpExt.ListenOverflows": 2}, evidence.CauseBacklogFull, evidence.Likely},
	} {
		t.Run(name, func(t *testing.T) {
			syn := pkt{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: in}
			again := syn
			again.ms = 1000
			inc := told([]pkt{syn, again}, tt.kernel...)
			counters(inc, tt.grown)
			inc.At.Sockets = []evidence.Socket{{State: "listen", Local: server, SendQueue: 4}}
			inc.At.Implicated = &evidence.Implicated{Rules: &evidence.Ruleset{Rules: []evidence.Rule{tt.rule}}}
			if tt.full {
				inc.At.Conntrack = &evidence.Conntrack{Count: 100, Max: 100}
			}
			if c := one(t, inc).Verdict.Claim(); c.Cause != tt.cause || c.Confidence != tt.sure {
				t.Errorf("%s %s: %s", c.Cause, c.Confidence, c.Sentence)
			}
		})
	}
}
