package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

// TestPortsExhausted: nothing on the wire, but sockets and a log agree; a busy range
// alone is none.
func TestPortsExhausted(t *testing.T) {
	uses := func(used int) *evidence.Incident {
		return &evidence.Incident{Roles: roles, At: &evidence.Snapshot{
			Sockets: []evidence.Socket{{State: "established", Local: pooled, Remote: backend}},
			Implicated: &evidence.Implicated{
				Ports:   &evidence.PortRange{First: 1000, Last: 1099, Uses: []evidence.PortUse{{Source: pooled.Addr(), Destination: backend, Used: used}}},
				Sysctls: []evidence.Sysctl{{Name: "net.ipv4.ip_local_port_range", Value: "1000 1099"}},
			}}}
	}
	inc := uses(99)
	inc.Logs = []evidence.LogLine{{Reason: evidence.ReasonNoLocalPort, Source: evidence.LogNginxError, Text: "connect() failed (99: Cannot assign requested address)"}}
	c := Judge(inc).Verdict.Claim()
	if c.Cause != evidence.CausePortsExhausted || c.Confidence != evidence.Proven || c.Party != evidence.Proxy {
		t.Errorf("%s %s party %s: %s", c.Cause, c.Confidence, c.Party, c.Sentence)
	}
	if !strings.Contains(c.Advice[1].Value, "1099") {
		t.Errorf("advice %+v", c.Advice)
	}
	if c := Judge(uses(99)).Verdict.Claim(); c.Confidence != evidence.Likely {
		t.Errorf("one kind of evidence is %s", c.Confidence)
	}
	later := uses(60)
	later.Firings = []evidence.Firing{{Trigger: "ports", Value: 0.96, Reason: "96 of 100 ephemeral ports are in use"}}
	later.Logs = inc.Logs
	if c := Judge(later).Verdict.Claim(); c.Confidence != evidence.Proven {
		t.Errorf("counted between two looks, and a log: %s", c.Confidence)
	}
	after := uses(60)
	after.After = uses(97).At
	if c := Judge(after).Verdict.Claim(); c.Cause != evidence.CausePortsExhausted {
		t.Errorf("used up at the end: %s", c.Sentence)
	}
	if c := Judge(uses(60)).Verdict.Claim(); c.Cause == evidence.CausePortsExhausted {
		t.Errorf("%s", c.Sentence)
	}
}

// TestConntrackIncident: whose table it is.
func TestConntrackIncident(t *testing.T) {
	inc := &evidence.Incident{
		Firings: []evidence.Firing{{Trigger: "conntrack", Expression: "96 %", Reason: "the table is nearly full"}},
		At: &evidence.Snapshot{
			Sockets: []evidence.Socket{{State: "listen", Local: netip.MustParseAddrPort("172.16.0.1:22")}},
			Conntrack: &evidence.Conntrack{Count: 96, Max: 100, TopTalkers: []evidence.Talker{
				{Source: client.Addr(), Destination: backend, Protocol: "tcp", Entries: 90}}},
		},
	}
	c := Judge(inc).Verdict.Claim()
	if c.Party != evidence.Network || c.Cause != evidence.CauseConntrackFull || c.Confidence != evidence.Proven {
		t.Errorf("party %s, cause %s, %s: %s", c.Party, c.Cause, c.Confidence, c.Sentence)
	}
	inc.At.Conntrack.TopTalkers[0].Source = netip.MustParseAddr("172.16.0.1")
	if c := Judge(inc).Verdict.Claim(); c.Party != evidence.PartyUnknown {
		t.Errorf("party %s of a host's own entries", c.Party)
	}
}

// TestConntrackFilledUp: the trigger fires while the table fills, and again when it is
// full. What is known at the end is told.
func TestConntrackFilledUp(t *testing.T) {
	table := func(n, drops uint64) *evidence.Snapshot {
		return &evidence.Snapshot{Conntrack: &evidence.Conntrack{Count: n, Max: 100, Drop: drops}}
	}
	syn := pkt{src: client, dst: server, flags: evidence.SYN, seq: 100, dir: evidence.Received}
	again := syn
	again.ms = 1000
	soon := evidence.Firing{Trigger: "conntrack", Reason: "nothing lost yet"}
	full := evidence.Firing{Trigger: "conntrack", Reason: "drop +3"}
	for name, tt := range map[string]struct {
		firings         []evidence.Firing
		after           *evidence.Snapshot
		sentence, usage string
	}{
		"it fills up":          {[]evidence.Firing{soon, {Trigger: "manual"}, full}, table(100, 3), full.Reason, "(100 %)"},
		"it has emptied again": {[]evidence.Firing{soon}, table(7, 3), soon.Reason, "(95 %)"},
	} {
		t.Run(name, func(t *testing.T) {
			j := Judge(&evidence.Incident{Window: window(syn, again), Firings: tt.firings, At: table(95, 0), After: tt.after})
			if c := j.Verdict.Claim(); c.Sentence != tt.sentence {
				t.Errorf("%s", c.Sentence)
			}
			for _, v := range []evidence.Verdict{j.Verdict, j.Flows[0].Verdict} {
				if !strings.Contains(fmt.Sprint(v.Findings()), tt.usage) {
					t.Errorf("without %q: %v", tt.usage, v.Findings())
				}
			}
		})
	}
}

// TestBenignIncident: where nothing is harmful, the incident is not either.
func TestBenignIncident(t *testing.T) {
	done := served(true,
		pkt{ms: 5, src: server, dst: client, flags: evidence.ACK | evidence.PSH, seq: 501, ack: 151, payload: 90, dir: evidence.Sent},
		pkt{ms: 5.5, src: client, dst: server, flags: evidence.ACK, seq: 151, ack: 591, dir: evidence.Received, id: 4},
		pkt{ms: 6, src: client, dst: server, flags: rstAck, seq: 151, ack: 591, dir: evidence.Received, id: 4})
	if c := Judge(&evidence.Incident{Window: window(done...)}).Verdict.Claim(); !c.Benign || c.Cause != evidence.CauseNormalClose {
		t.Errorf("benign %v, %s: %s", c.Benign, c.Cause, c.Sentence)
	}
}
