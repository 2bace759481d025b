package evidence

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// IP headers to 10.0.0.2; the TCP headers follow.
const (
	ip4      = "4510 0028 1234 4000 3f06 0000 0a000001 0a000002"
	ip4Long  = "4500 0034 0001 0000 4006 0000 0a000001 0a000002"
	ip6      = "600a bcde 0014 06 40 fe800000000000000000000000000001 fe800000000000000000000000000002"
	ip6HBH   = "6000 0000 001c 00 40 fe800000000000000000000000000001 fe800000000000000000000000000002 06 00 0104 00000000"
	tcpRST   = "1f90 c350 00000064 00000000 50 04 0000 0000 0000"
	tcpSYN   = "c350 1f90 00000001 00000000 80 02 faf0 0000 0000 020405b4 0101 080a 0000000a 00000000 "
	tcpSYN12 = "c350 1f90 00000001 00000000 80 02 faf0 0000 0000 020405b4 0303 07 01 04 02 01 01"
)

func TestParseSegment(t *testing.T) {
	v4 := func(port uint16, last byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), port)
	}
	v6 := func(port uint16, last string) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("fe80::"+last), port)
	}
	tests := []struct {
		name string
		in   string
		wire uint32
		want Segment
		err  error
	}{
		{name: "v4 RST", in: ip4 + tcpRST, wire: 40, want: Segment{
			Src: v4(8080, 1), Dst: v4(50000, 2), Seq: 100, Flags: RST, TTL: 63, TOS: 16, IPID: 0x1234, DontFragment: true,
		}},
		{name: "v4 RST with payload", in: "4500 002a 0000 0000 4006 0000 0a000001 0a000002" + tcpRST + "33aa", wire: 42, want: Segment{
			Src: v4(8080, 1), Dst: v4(50000, 2), Seq: 100, Flags: RST, TTL: 64, PayloadBytes: 2, Payload: []byte{0x33, 0xaa},
		}},
		{name: "v4 SYN with MSS and broken timestamps", in: ip4Long + tcpSYN12, wire: 52, want: Segment{
			Src: v4(50000, 1), Dst: v4(8080, 2), Seq: 1, Flags: SYN, Window: 0xfaf0, TTL: 64, IPID: 1, MSS: 1460, WindowScale: 7, OptionBytes: 12,
		}},
		{name: "v4 BIG TCP takes the wire length", in: "4500 0000 0000 0000 4006 0000 0a000001 0a000002 1f90 c350 00000064 00000000 50 10 0000 0000 0000", wire: 70040, want: Segment{
			Src: v4(8080, 1), Dst: v4(50000, 2), Seq: 100, Flags: ACK, TTL: 64, PayloadBytes: 70000,
		}},
		{name: "v6 with flow label", in: ip6 + tcpRST, wire: 60, want: Segment{
			Src: v6(8080, "1"), Dst: v6(50000, "2"), Seq: 100, Flags: RST, TTL: 64, FlowLabel: 0xabcde,
		}},
		{name: "v6 hop-by-hop", in: ip6HBH + tcpRST, wire: 68, want: Segment{
			Src: v6(8080, "1"), Dst: v6(50000, "2"), Seq: 100, Flags: RST, TTL: 64,
		}},
		{name: "v6 first fragment", in: "6000 0000 001c 2c 40 fe800000000000000000000000000001 fe800000000000000000000000000002 06 00 0001 00000009" + tcpRST, wire: 68, want: Segment{
			Src: v6(8080, "1"), Dst: v6(50000, "2"), Seq: 100, Flags: RST, TTL: 64,
		}},
		{name: "v6 later fragment", in: "6000 0000 001c 2c 40 fe800000000000000000000000000001 fe800000000000000000000000000002 06 00 0009 00000009" + tcpRST, err: ErrNotTCP},
		{name: "empty", err: ErrTruncated},
		{name: "UDP", in: "4500 001c 0000 0000 4011 0000 0a000001 0a000002", err: ErrNotTCP},
		{name: "later fragment", in: "4500 0028 0000 0010 4006 0000 0a000001 0a000002" + tcpRST, err: ErrNotTCP},
		{name: "v4 header length below 5", in: "4400 0028 0000 0000 4006 0000 0a000001 0a000002" + tcpRST, err: ErrTruncated},
		{name: "v4 cut in TCP", in: ip4 + "1f90c350", err: ErrTruncated},
		{name: "TCP offset past the end", in: ip4 + "1f90 c350 00000064 00000000 f0 04 0000 0000 0000", err: ErrTruncated},
		{name: "v6 cut in extension", in: strings.TrimSuffix(ip6HBH, "0104 00000000"), err: ErrTruncated},
		{name: "version 5", in: "50", err: ErrNotTCP},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Packet{Nanos: 7, Header: unhex(t, tt.in), WireBytes: tt.wire}
			var got Segment
			err := ParseSegment(&p, &got)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			tt.want.Time = time.Unix(0, 7)
			opts := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(tt.want, got, opts); diff != "" {
				t.Errorf("segment (-want +got):\n%s", diff)
			}
		})
	}
}

// The headers of tunnels from 192.0.2.1 to 192.0.2.2, or 2001:db8::1 to ::2; the
// inner packet follows.
const (
	outer4   = "4500 0200 0000 0000 40 %s 0000 c0000201 c0000202"
	outer6   = "6000 0000 0200 %s 40 20010db8000000000000000000000001 20010db8000000000000000000000002"
	inFrame  = "020000000001 020000000002 0800"
	inTagged = "020000000001 020000000002 88a8 0007 8100 0008 86dd"
	vxlanUDP = "c000 12b5 0100 0000 08000000 00002a00"
)

func TestParseSegmentInTunnels(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		want Tunnel
		err  error
	}{
		{"ipip", fmt.Sprintf(outer4, "04") + ip4, TunnelIPv4, nil},
		{"6in4", fmt.Sprintf(outer4, "29") + ip6, TunnelIPv6, nil},
		{"4in6", fmt.Sprintf(outer6, "04") + ip4, TunnelIPv4, nil},
		{"6in6", fmt.Sprintf(outer6, "29") + ip6, TunnelIPv6, nil},
		{"6in6, encapsulation limit", fmt.Sprintf(outer6, "3c") + "29 00 04 01 04 01 01 00" + ip6, TunnelIPv6, nil},
		{"gre", fmt.Sprintf(outer4, "2f") + "0000 0800" + ip4, TunnelGRE, nil},
		{"gre, v6", fmt.Sprintf(outer6, "2f") + "0000 86dd" + ip6, TunnelGRE, nil},
		{"gre, checksum", fmt.Sprintf(outer4, "2f") + "8000 0800 11112222" + ip4, TunnelGRE, nil},
		{"gre, key and sequence", fmt.Sprintf(outer4, "2f") + "3000 0800 11112222 33334444" + ip4, TunnelGRE, nil},
		{"gre, all", fmt.Sprintf(outer4, "2f") + "b000 0800 11112222 33334444 55556666" + ip4, TunnelGRE, nil},
		{"gre, ethernet", fmt.Sprintf(outer4, "2f") + "0000 6558" + inFrame + ip4, TunnelGRE, nil},
		{"gre, ethernet, qinq", fmt.Sprintf(outer4, "2f") + "2000 6558 00000001" + inTagged + ip6, TunnelGRE, nil},
		{"vxlan cut short", fmt.Sprintf(outer4, "11") + vxlanUDP + "0000", NoTunnel, ErrNotTCP},
		{"vxlan", fmt.Sprintf(outer4, "11") + vxlanUDP + inFrame + ip4, TunnelVXLAN, nil},
		{"geneve", fmt.Sprintf(outer4, "11") + "c000 17c1 0100 0000 0200 6558 00002a00 0102030405060708" + inFrame + ip4, TunnelGeneve, nil},
		{"geneve, v6", fmt.Sprintf(outer6, "11") + "c000 17c1 0100 0000 0000 86dd 00002a00" + ip6, TunnelGeneve, nil},
		{"ipip in gre", fmt.Sprintf(outer4, "2f") + "0000 0800" + fmt.Sprintf(outer4, "04") + ip4, TunnelGRE, nil},
		{"too deep", strings.Repeat(fmt.Sprintf(outer4, "04"), maxTunnels+1) + ip4, NoTunnel, ErrNotTCP},
		{"gre, source route", fmt.Sprintf(outer4, "2f") + "4000 0800" + ip4, NoTunnel, ErrNotTCP},
		{"gre, pptp", fmt.Sprintf(outer4, "2f") + "0001 0800" + ip4, NoTunnel, ErrNotTCP},
		{"gre, arp", fmt.Sprintf(outer4, "2f") + "0000 0806" + ip4, NoTunnel, ErrNotTCP},
		{"gre cut short", fmt.Sprintf(outer4, "2f") + "00", NoTunnel, ErrNotTCP},
		{"ethernet cut short", fmt.Sprintf(outer4, "2f") + "0000 6558 020000", NoTunnel, ErrNotTCP},
		{"ipip cut short", fmt.Sprintf(outer4, "04"), NoTunnel, ErrTruncated},
		{"other port", fmt.Sprintf(outer4, "11") + "c000 0035 0100 0000 08000000 00002a00" + inFrame + ip4, NoTunnel, ErrNotTCP},
		{"later fragment", "4500 0200 0000 0009 4004 0000 c0000201 c0000202" + ip4, NoTunnel, ErrNotTCP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Packet{Header: unhex(t, tt.in+tcpRST), WireBytes: 600}
			if tt.err != nil {
				p.Header = unhex(t, tt.in)
			}
			var s Segment
			if err := ParseSegment(&p, &s); !errors.Is(err, tt.err) || s.Tunnel != tt.want {
				t.Fatalf("tunnel %v, error %v; want %v, %v", s.Tunnel, err, tt.want, tt.err)
			} else if err != nil {
				return
			}
			outer := s.OuterSrc.String() == "192.0.2.1" && s.OuterDst.String() == "192.0.2.2" ||
				s.OuterSrc.String() == "2001:db8::1" && s.OuterDst.String() == "2001:db8::2"
			inner := s.Src.String() == "10.0.0.1:8080" && s.TTL == 63 || s.Src.String() == "[fe80::1]:8080" && s.TTL == 64
			if !outer || !inner || s.Seq != 100 || s.Flags != RST || s.PayloadBytes != 0 {
				t.Errorf("segment %+v", s)
			}
		})
	}
}

func TestParseSegmentAllocatesNothing(t *testing.T) {
	for _, in := range []string{ip4, ip6HBH, fmt.Sprintf(outer4, "2f") + "0000 6558" + inFrame + ip4} {
		p := Packet{Header: unhex(t, in+tcpRST), WireBytes: 40}
		var s Segment
		if n := testing.AllocsPerRun(100, func() { _ = ParseSegment(&p, &s) }); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	}
}

func FuzzParseSegment(f *testing.F) {
	for _, seed := range []string{ip4 + tcpRST, ip4Long + tcpSYN, ip6 + tcpRST, ip6HBH + tcpRST, "",
		fmt.Sprintf(outer4, "2f") + "b000 6558 11112222 33334444 55556666" + inTagged + ip6 + tcpRST,
		fmt.Sprintf(outer6, "04") + fmt.Sprintf(outer4, "11") + vxlanUDP + inFrame + ip4 + tcpRST} {
		f.Add(unhex(f, seed), uint32(60))
	}
	f.Fuzz(func(t *testing.T, b []byte, wire uint32) {
		var s Segment
		if err := ParseSegment(&Packet{Header: b, WireBytes: wire}, &s); err != nil {
			return
		}
		if !s.Src.IsValid() || !s.Dst.IsValid() {
			t.Errorf("a segment without addresses: %+v", s)
		}
		if !s.Flags.Has(RST) && len(s.Payload) > 0 {
			t.Errorf("payload of a segment that is no RST: %+v", s)
		}
	})
}

func TestFlagsString(t *testing.T) {
	for want, f := range map[string]Flags{"none": 0, "RST": RST, "SYN_ACK": SYN | ACK, "RST_ACK": RST | ACK, "AE": AE} {
		if got := f.String(); got != want {
			t.Errorf("Flags(%#x) is %q, want %q", uint16(f), got, want)
		}
	}
}
