package verdict

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// stormFlows is a storm of resets as an incident may hold it.
const stormFlows = 10_000

// storm is that many requests that a process aborts, each with the kernel's event.
func storm() *evidence.Incident {
	inc := told(nil)
	sel := NewSelection()
	var all []evidence.Packet
	for i := range stormFlows {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)}), 40000)
		for _, p := range served(true, activeRST) {
			if p.src == client {
				p.src = from
			} else {
				p.dst = from
			}
			p.ttl, p.window = 64, 1000
			h := p.header()
			all = append(all, evidence.Packet{Header: h, WireBytes: uint32(len(h) + p.payload), Direction: p.dir, Interface: 2,
				LinkType: 1, Number: len(all) + 1, Nanos: atMS(p.ms + float64(i)/10).UnixNano()})
		}
		e := sentEvent(func(e *evidence.KernelEvent) { e.Remote, e.Time, e.NetNS = from, atMS(9+float64(i)/10), ownNetNS })
		inc.Kernel = append(inc.Kernel, e)
	}
	slices.SortStableFunc(all, func(a, b evidence.Packet) int { return int(a.Nanos - b.Nanos) })
	for i := range all {
		sel.Survey(&all[i])
	}
	for i := range all {
		sel.Take(&all[i])
	}
	sel.Fill(&inc.Window)
	return inc
}

// TestStorm: the flows that are judged are proven one by one, quickly.
func TestStorm(t *testing.T) {
	inc := storm()
	began := time.Now()
	j := Judge(inc)
	took := time.Since(began)
	t.Logf("judged in %v", took)
	if took > 5*time.Second || j.FlowsImplicated != stormFlows {
		t.Errorf("%d flows judged in %v", j.FlowsImplicated, took)
	}
	for _, f := range j.Flows {
		if c := f.Verdict.Claim(); c.Confidence != evidence.Proven || c.Process == nil {
			t.Fatalf("%s: %s", f.String(), c.Sentence)
		}
	}
}

func BenchmarkJudgeStorm(b *testing.B) {
	inc := storm()
	for b.Loop() {
		Judge(inc)
	}
}

// TestReferenceCaptures judges captures of others, of which nothing but the packets
// is there: whatever they show, that proves nothing. RSTLAB_REFERENCE is a directory
// with captures below it.
func TestReferenceCaptures(t *testing.T) {
	root := os.Getenv("RSTLAB_REFERENCE")
	if root == "" {
		t.Skip("RSTLAB_REFERENCE is not set")
	}
	files, err := filepath.Glob(filepath.Join(root, "*", "captures", "*.pcap"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures below %s: %v", root, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		inc := &evidence.Incident{Window: evidence.Window{Packets: classic(b)}}
		selectAll(&inc.Window)
		j := Judge(inc)
		for _, v := range append([]evidence.Flow{{Verdict: j.Verdict}}, j.Flows...) {
			if c := v.Verdict.Claim(); c.Confidence == evidence.Proven || c.PartyConfidence == evidence.Proven {
				t.Errorf("%s: %s is proven from packets alone", filepath.Base(f), c.Sentence)
			}
			if _, err := json.Marshal(v); err != nil {
				t.Errorf("%s: %v", filepath.Base(f), err)
			}
		}
	}
}

// classic reads a pcap file of Ethernet frames (draft-ietf-opsawg-pcap). The host
// that sent the first frame is taken for the one that captured.
func classic(b []byte) (all []evidence.Packet) {
	le := binary.LittleEndian
	unit := int64(1000)
	if len(b) < 24 || le.Uint32(b) == 0xa1b23c4d {
		unit = 1
	}
	for at := 24; at+16 <= len(b); {
		n := int(le.Uint32(b[at+8:]))
		head, frame := b[at:at+16], b[at+16:min(at+16+n, len(b))]
		if at += 16 + n; len(frame) < 34 || frame[12] != 8 && frame[12] != 0x86 {
			continue
		}
		p := evidence.Packet{Nanos: int64(le.Uint32(head))*1e9 + int64(le.Uint32(head[4:]))*unit, Interface: 2, LinkType: 1,
			WireBytes: le.Uint32(head[12:]) - 14, Direction: evidence.Received, Header: frame[14:], SrcMAC: [6]byte(frame[6:])}
		if len(all) == 0 || p.SrcMAC == all[0].SrcMAC {
			p.Direction = evidence.Sent
		}
		all = append(all, p)
	}
	return all
}
