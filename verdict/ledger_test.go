package verdict

import (
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// What the ledger leaves open speaks for another sender, or against what the lack
// of an event seemed to prove; it does not outdo anything.
func TestLedgerIsWeighed(t *testing.T) {
	forged := pkt{ms: 9, src: server, dst: client, flags: rstAck, seq: 501, ack: 151, dir: evidence.Sent, id: 4660, ttl: 255}
	reject := pkt{ms: 9, src: server, dst: client, flags: evidence.RST, seq: 501, dir: evidence.Sent, df: true, window: none}
	second := start.UTC().Truncate(time.Second)
	row := func(parts ...evidence.LedgerPart) []evidence.LedgerSecond {
		return []evidence.LedgerSecond{{NetNS: ownNetNS, Second: second, WireSent: 3, Parts: parts}}
	}
	other := evidence.LedgerPart{Cause: evidence.LedgerOtherSender, Count: 1}
	untold := evidence.LedgerPart{Cause: evidence.LedgerUntold, Count: 2}
	drop := evidence.KernelEvent{Kind: evidence.SegmentDropped, Reason: "NETFILTER_DROP", Time: atMS(8.9), Local: server, Remote: client, Trigger: strayACK}
	hooks := []evidence.KernelHook{{Name: "kfree_skb", Attached: true}}
	for _, test := range []struct {
		name       string
		rst        pkt
		ledger     []evidence.LedgerSecond
		events     []evidence.KernelEvent
		lost       uint64
		origin     evidence.Origin
		confidence evidence.Confidence
	}{
		{"nothing is known of the second", forged, nil, nil, 0, "", evidence.Uncertain},
		{"another namespace", forged, []evidence.LedgerSecond{{NetNS: 9, Second: second, Parts: row(other)[0].Parts}}, nil, 0, "", evidence.Uncertain},
		{"no filter makes such a RST", forged, row(other), nil, 0, evidence.OriginLocalOther, evidence.Possible},
		{"packets are missing", forged, row(other), nil, 5, "", evidence.Uncertain},
		{"events are missing", forged, row(untold, other), nil, 0, "", evidence.Uncertain},
		{"a filter's header, nothing more", reject, nil, nil, 0, evidence.OriginLocalNetfilter, evidence.Likely},
		{"a filter's header, and no drop", reject, row(other), nil, 0, evidence.OriginLocalNetfilter, evidence.Possible},
		{"a filter's header, events are missing", reject, row(untold), nil, 0, evidence.OriginLocalNetfilter, evidence.Possible},
		{"a filter's drop", reject, row(untold, other), []evidence.KernelEvent{drop}, 0, evidence.OriginLocalNetfilter, evidence.Proven},
	} {
		t.Run(test.name, func(t *testing.T) {
			inc := told(served(true, request, test.rst), test.events...)
			inc.KernelLevel.Hooks, inc.Ledger = hooks, test.ledger
			if test.lost > 0 {
				inc.Window.Gaps = []evidence.Gap{{From: start, To: second.Add(time.Minute), Lost: test.lost, Reason: "lost"}}
			}
			c := Judge(inc).Flows[0].Verdict.Claim()
			if test.origin == "" {
				if c.Confidence != evidence.Uncertain {
					t.Errorf("%s %s: %s", c.Origin, c.Confidence, c.Sentence)
				}
				return
			}
			if c.Origin != test.origin || c.Confidence != test.confidence {
				t.Errorf("%s %s, want %s %s: %s", c.Origin, c.Confidence, test.origin, test.confidence, c.Sentence)
			}
			if c.Origin == evidence.OriginLocalOther && !strings.Contains(c.Sentence, "not its TCP") {
				t.Errorf("%q", c.Sentence)
			}
		})
	}
}

// An event of the RST is nearer to it than what a second adds up to.
func TestLedgerLeavesEventsAlone(t *testing.T) {
	inc := told(served(true, activeRST), sentEvent(nil))
	before := Judge(inc).Flows[0].Verdict.Claim()
	inc = told(served(true, activeRST), sentEvent(nil))
	inc.Ledger = []evidence.LedgerSecond{{NetNS: ownNetNS, Second: start.UTC(), WireSent: 3,
		Parts: []evidence.LedgerPart{{Cause: evidence.LedgerOtherSender, Count: 2}, {Cause: evidence.LedgerUntold, Count: 1}}}}
	if after := Judge(inc).Flows[0].Verdict.Claim(); after.Confidence != before.Confidence || after.Sentence != before.Sentence {
		t.Errorf("%s %q, want %s %q", after.Confidence, after.Sentence, before.Confidence, before.Sentence)
	}
}
