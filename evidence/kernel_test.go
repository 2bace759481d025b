package evidence

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestResetNumbers(t *testing.T) {
	for name, tt := range map[string]struct {
		event KernelEvent
		want  ResetNumbers
	}{
		"close with unread data": {
			KernelEvent{Kind: ResetSent, State: "closed", SndNxt: 7, RcvNxt: 9, HasNumbers: true},
			ResetNumbers{7, 9, true, true},
		},
		"SYN to a closed port": {
			KernelEvent{Kind: ResetSent, Trigger: &Trigger{Flags: SYN, Seq: 100}},
			ResetNumbers{0, 101, true, true},
		},
		"data to a dead connection": {
			KernelEvent{Kind: ResetSent, Trigger: &Trigger{Flags: PSH | ACK, Seq: 100, Ack: 200, PayloadBytes: 5}},
			ResetNumbers{Seq: 200, SeqKnown: true},
		},
		"FIN without ACK": {
			KernelEvent{Kind: FirewallReject, Trigger: &Trigger{Flags: FIN, Seq: 1<<32 - 1, PayloadBytes: 5}},
			ResetNumbers{0, 5, true, true},
		},
		"received": {
			KernelEvent{Kind: ResetReceived, State: "established", SndNxt: 7, RcvNxt: 9, HasNumbers: true},
			ResetNumbers{Seq: 9, SeqKnown: true},
		},
		"refused": {
			KernelEvent{Kind: ResetReceived, State: "syn_sent", SndNxt: 7, HasNumbers: true},
			ResetNumbers{Ack: 7, AckKnown: true},
		},
		"a RST that was ignored": {
			KernelEvent{Kind: SegmentDropped, Trigger: &Trigger{Flags: RST, Seq: 3}},
			ResetNumbers{3, 0, true, true},
		},
		"no RST": {KernelEvent{Kind: SocketError, SndNxt: 7, HasNumbers: true}, ResetNumbers{}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.event.ResetNumbers()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestKernelEventJSON(t *testing.T) {
	want := KernelEvent{
		Kind: ResetSent, Time: time.Unix(1, 2).UTC(), NetNS: 4026531840,
		Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("[2001:db8::1]:4711"),
		Reason: "TCP_ABORT_ON_CLOSE", State: "closed", Unread: 1000, Exiting: true, Signal: 9,
		Owner: &Owner{PID: 12, Comm: "web"}, Via: ViaAccept, Actor: &Owner{PID: 12, Comm: "web"},
		Grave: &Grave{Died: time.Unix(0, 5).UTC(), State: "fin_wait_2", Errno: 110},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got KernelEvent
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
