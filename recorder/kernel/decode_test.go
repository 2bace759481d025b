package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// at is the moment of boot in these tests.
var at = time.Unix(1_700_000_000, 0)

func testDecoder() *decoder {
	return &decoder{
		resets: map[uint32]string{0: "NOT_SPECIFIED", 1: "NO_SOCKET", 11: "TCP_ABORT_ON_CLOSE", 14: "TCP_STATE"},
		drops:  map[uint32]string{12: "NETFILTER_DROP"},
		clock:  newClock(func() (int64, int64, int64) { return 0, at.UnixNano(), 0 }),
		hz:     250,
	}
}

func addr(s string) [16]uint8 { return netip.MustParseAddr(s).As16() }

func name(s string) (c [16]int8) {
	for i := range s {
		c[i] = int8(s[i])
	}
	return c
}

// The records are as the programs write them.
func killedUnread() bpfEvent {
	r := bpfEvent{
		Time: 5e9, Cookie: 77, Kind: 1, State: 7, Reason: 11, Sock: 1, Shutdown: 3, SndNxt: 100, RcvNxt: 200,
		Unread: 1000, Exiting: 1, ExitCode: 9, Linger: 1, LingerJiffies: 500,
	}
	r.Tuple = bpfTuple{Netns: 4026531840, Lport: 80, Rport: 4711, Laddr: addr("192.0.2.1"), Raddr: addr("2001:db8::1")}
	r.Owner = bpfOwner{Start: 1e9, Pid: 42, Tid: 43, Uid: 33, Via: 2, Comm: name("web")}
	r.Actor = bpfOwner{Start: 1e9, Pid: 42, Tid: 44, Uid: 33, Comm: name("web")}
	return r
}

func refused() bpfEvent {
	r := bpfEvent{Time: 6e9, Kind: 1, Reason: 1}
	r.Tuple = bpfTuple{Netns: 1, Lport: 81, Rport: 4712, Laddr: addr("192.0.2.1"), Raddr: addr("192.0.2.9")}
	r.Seg.Seq, r.Seg.Flags, r.Seg.Ttl, r.Seg.How = 99, 2, 64, segmentHere
	r.Listener = bpfOwner{Start: 1e9, Pid: 7, Via: 5, Comm: name("old")}
	r.Grave.Died, r.Grave.State, r.Grave.Err, r.Grave.Cookie = 4e9, 1, 110, 5
	return r
}

func TestEvent(t *testing.T) {
	web := &evidence.Owner{PID: 42, Comm: "web", UID: 33, Started: at.Add(time.Second)}
	for what, tt := range map[string]struct {
		record bpfEvent
		want   evidence.KernelEvent
	}{
		"killed with unread data": {killedUnread(), evidence.KernelEvent{
			Kind: evidence.ResetSent, Time: at.Add(5 * time.Second), NetNS: 4026531840, Cookie: 77,
			Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("[2001:db8::1]:4711"),
			Reason: "TCP_ABORT_ON_CLOSE", State: "closed", SndNxt: 100, RcvNxt: 200, HasNumbers: true, Unread: 1000,
			ShutdownRead: true, ShutdownWrite: true, Linger: true, LingerTime: 2 * time.Second,
			Owner: web, Via: evidence.ViaAccept, Actor: web, Exiting: true, Signal: 9,
		}},
		"refused": {refused(), evidence.KernelEvent{
			Kind: evidence.ResetSent, Time: at.Add(6 * time.Second), NetNS: 1,
			Local: netip.MustParseAddrPort("192.0.2.1:81"), Remote: netip.MustParseAddrPort("192.0.2.9:4712"),
			Reason: "NO_SOCKET", Trigger: &evidence.Trigger{Flags: evidence.SYN, Seq: 99, TTL: 64},
			LastListener: &evidence.Owner{PID: 7, Comm: "old", Started: at.Add(time.Second)},
			Grave:        &evidence.Grave{Died: at.Add(4 * time.Second), State: "established", Errno: 110, Cookie: 5},
		}},
	} {
		t.Run(what, func(t *testing.T) {
			r, err := parseEvent(sample(t, &tt.record))
			if err != nil {
				t.Fatal(err)
			}
			same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if diff := cmp.Diff(tt.want, testDecoder().event(&r), same); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// sample is a record as the ring has it.
func sample(t testing.TB, r *bpfEvent) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parseEvent reads what a reading field by field would.
func TestEventHasNoHoles(t *testing.T) {
	b := make([]byte, binary.Size(bpfEvent{}))
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	b[bytes.IndexByte(sample(t, &bpfEvent{Kind: 1}), 1)] = 1
	var want bpfEvent
	if _, err := binary.Decode(b, binary.LittleEndian, &want); err != nil {
		t.Fatal(err)
	}
	got, err := parseEvent(b)
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func BenchmarkParseEvent(b *testing.B) {
	r := killedUnread()
	raw := sample(b, &r)
	for b.Loop() {
		if _, err := parseEvent(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// A process outside of the recorder's PID namespace has no number and is not named.
func TestProcessOfAnotherPIDNamespace(t *testing.T) {
	r := killedUnread()
	r.Owner.Pid, r.Actor.Pid = 0, 0
	if e := testDecoder().event(&r); e.Owner != nil || e.Via != "" || e.Actor != nil {
		t.Errorf("owner %+v by %q, actor %+v", e.Owner, e.Via, e.Actor)
	}
}

// A socket that is destroyed before the event still has its owner, but not that of
// another socket which had the tuple before.
func TestOwnerOutOfTheGrave(t *testing.T) {
	for cookie, want := range map[uint64]int{77: 42, 78: 0, 0: 0} {
		r := killedUnread()
		r.Grave.Died, r.Grave.Cookie, r.Grave.Owner = 4e9, cookie, r.Owner
		r.Owner = bpfOwner{}
		if cookie == 0 {
			r.Cookie = 0
		}
		e := testDecoder().event(&r)
		if pidOf(e.Owner) != want || pidOf(e.Grave.Owner) != 42 {
			t.Errorf("grave of %d: owner %+v by %q, want %d", cookie, e.Owner, e.Via, want)
		}
	}
}

func TestParseEventRefuses(t *testing.T) {
	whole := make([]byte, binary.Size(bpfEvent{}))
	for what, b := range map[string][]byte{
		"nothing": nil, "too short": whole[:len(whole)-1], "too long": append(whole[:len(whole):len(whole)], 0), "no kind": whole,
	} {
		if _, err := parseEvent(b); err == nil || !strings.HasPrefix(err.Error(), "decode event") {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, r := range []bpfEvent{killedUnread(), refused()} {
		f.Add(sample(f, &r))
	}
	d := testDecoder()
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseEvent(b)
		if err != nil {
			return
		}
		e := d.event(&r)
		if e.Kind == "" || (e.Actor != nil && e.Trigger != nil) {
			t.Errorf("%+v", e)
		}
		_ = e.ResetNumbers()
	})
}

// TestBelievable is the table of who may be named.
func TestBelievable(t *testing.T) {
	for what, tt := range map[string]struct {
		change func(*bpfEvent)
		reason string
		want   bool
	}{
		"close with unread data":           {func(*bpfEvent) {}, "TCP_ABORT_ON_CLOSE", true},
		"close, older kernel":              {func(*bpfEvent) {}, "", true},
		"provoked by a segment":            {func(r *bpfEvent) { r.Seg.How = segmentHere }, "TCP_ABORT_ON_DATA", false},
		"keepalive timer":                  {func(r *bpfEvent) { r.State = 1 }, "TCP_KEEPALIVE_TIMEOUT", false},
		"keepalive timer, older kernel":    {func(r *bpfEvent) { r.State = 1 }, "", false},
		"out of memory in a timer":         {func(r *bpfEvent) { r.State, r.Orphan = 4, 1 }, "TCP_ABORT_ON_MEMORY", false},
		"socket destroyed":                 {func(r *bpfEvent) { r.State = 1 }, "TCP_STATE", true},
		"idle":                             {func(r *bpfEvent) { r.Actor.Pid = 0 }, "TCP_ABORT_ON_CLOSE", false},
		"worker of the kernel":             {func(r *bpfEvent) { r.Kthread = 1 }, "TCP_ABORT_ON_CLOSE", false},
		"no socket":                        {func(r *bpfEvent) { r.Sock, r.State = 0, 0 }, "NO_SOCKET", false},
		"received":                         {func(r *bpfEvent) { r.Kind = 2 }, "", false},
		"queue of a closed listener":       {func(r *bpfEvent) { r.Orphan = 1 }, "TCP_STATE", true},
		"queue, somebody else is running":  {func(r *bpfEvent) { r.Orphan, r.Owner.Pid = 1, 8 }, "TCP_STATE", false},
		"queue, no owner":                  {func(r *bpfEvent) { r.Orphan, r.Owner = 1, bpfOwner{} }, "TCP_STATE", false},
		"orphan, TCP_LINGER2 below 0":      {func(r *bpfEvent) { r.Orphan, r.Owner.Pid = 1, 8 }, "TCP_ABORT_ON_LINGER", true},
		"orphan, older kernel, not itself": {func(r *bpfEvent) { r.Orphan, r.Owner.Pid = 1, 8 }, "", false},
	} {
		r := killedUnread()
		tt.change(&r)
		if got := believable(&r, tt.reason); got != tt.want {
			t.Errorf("%s: %v, want %v", what, got, tt.want)
		}
	}
}

func TestReason(t *testing.T) {
	d := testDecoder()
	for _, tt := range []struct {
		kind uint8
		n    uint32
		want string
	}{{1, 0, ""}, {1, 14, "TCP_STATE"}, {1, 99, "99"}, {4, 12, "NETFILTER_DROP"}, {2, 14, ""}, {5, 1, ""}} {
		if got := d.reason(tt.kind, tt.n); got != tt.want {
			t.Errorf("reason %d of kind %d: %q, want %q", tt.n, tt.kind, got, tt.want)
		}
	}
}

func TestDropsWanted(t *testing.T) {
	names := map[uint32]string{3: "NO_SOCKET", 45: "TCP_RESET", 46: "TCP_INVALID_SYN", 12: "NETFILTER_DROP", 5: "SOCKET_FILTER", 300: "TCP_RESET"}
	want := [dropReasons]uint8{3: wantListen, 45: wantRST, 46: wantRST | wantTCP, 12: wantTCP}
	if diff := cmp.Diff(want, dropsWanted(names, false)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	want[3] |= wantStray
	if diff := cmp.Diff(want, dropsWanted(names, true)); diff != "" {
		t.Errorf("stray (-want +got)\n%s", diff)
	}
}
