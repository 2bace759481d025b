package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// Each namespace has its sums, and what is left open is said in words.
func TestLedger(t *testing.T) {
	inc := &evidence.Incident{ID: "X", Time: start, Host: evidence.Host{NetNS: 1},
		Window: evidence.Window{Namespaces: []evidence.Namespace{{Index: 1, Inode: 2, Path: "/run/netns/blue"}}},
		Ledger: []evidence.LedgerSecond{
			{NetNS: 1, Second: start, WireSent: 1200, Sent: map[string]uint64{"NO_SOCKET": 700, "TCP_STATE": 100}, Suppressed: 397, OutRsts: 1197, HasOutRsts: true,
				WireReceived: 5, Received: 2, SuppressedReceived: 1, Ignored: 1, Unclaimed: 1, Parts: []evidence.LedgerPart{{Cause: evidence.LedgerOtherSender, Count: 3}}},
			{NetNS: 1, Second: start.Add(time.Second), WireSent: 1, Rejects: 1},
			{NetNS: 2, Second: start, WireSent: 1, WireForwarded: 9, Parts: []evidence.LedgerPart{{Cause: evidence.LedgerFirewall, Count: 1}, {Cause: evidence.LedgerUnrecorded, Count: 4}}},
		}, Verdict: evidence.Unknown("nothing", "nothing")}
	var out bytes.Buffer
	if err := Text(&out, inc, time.UTC); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"LEDGER of resets",
		"the recorder's own 1,201 1,197 1,197 1 0 5 3 1 1",
		"blue 1 0 - 1 9 0 0 0 0",
		"3 resets in the recorder's own: not TCP's, but of a raw or packet socket",
		"1 reset in blue: made by a firewall rule", "4 resets in blue: sent by TCP, but not seen",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
