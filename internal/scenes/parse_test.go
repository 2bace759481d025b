package scenes

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCounters(t *testing.T) {
	const text = `Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn OutRsts
Tcp: 1 200 120000 -1 17
odd: a b
odd: 1
`
	got := map[string]uint64{}
	parseCounters(text, got)
	want := map[string]uint64{
		"Ip.Forwarding": 1, "Ip.DefaultTTL": 64,
		"Tcp.RtoAlgorithm": 1, "Tcp.RtoMin": 200, "Tcp.RtoMax": 120000, "Tcp.OutRsts": 17,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestParseSocket(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0202620A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5566 1 0000000000000000 100 0 0 10 0
   1: 0202620A:1F90 0201620A:8F1C 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0000000000000000
   2: 000098FD0100000000000000020000000:1F91 000098FD0000000000000000:8F1D 05 00000000:00000000 03:00001770
   3: 0202620A:1F92 0201620A:8F1C xx 00000000:00000000 00:00000000
`
	for _, tt := range []struct {
		local, remote uint16
		state, timer  int
		fails         bool
	}{
		{8080, 0, stateListen, 0, false},
		{8080, 36636, stateTimeWait, timerTimeWait, false},
		{8081, 36637, stateFinWait2, timerTimeWait, false},
		{8080, 1, 0, 0, false},
		{8082, 36636, 0, 0, true},
	} {
		state, timer, err := parseSocket(text, tt.local, tt.remote)
		if state != tt.state || timer != tt.timer || (err != nil) != tt.fails {
			t.Errorf("parseSocket(%d, %d) = %d, %d, %v, want %d, %d", tt.local, tt.remote, state, timer, err, tt.state, tt.timer)
		}
	}
}

func FuzzParseSocket(f *testing.F) {
	f.Add("0: 0202620A:1F90 0201620A:8F1C 01 x 02:0\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s, _, err := parseSocket(text, 8080, 36636); err == nil && (s < 0 || s > 255) {
			t.Errorf("state %d", s)
		}
		parseCounters(text, map[string]uint64{})
	})
}

// TestSegment checks that the checksums of a whole forged packet come out as 0.
func TestSegment(t *testing.T) {
	for _, tt := range []struct{ src, dst string }{{"10.98.1.2:1000", "10.98.2.2:80"}, {"[fd98:1::2]:1000", "[fd98:2::2]:80"}} {
		for _, payload := range []int{0, 7, 100} {
			s := segment{netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst), 1, 2, flagACK, payload, 0}
			b := s.marshal()
			head := len(b) - 20 - payload
			if head == 20 && checksum(b[:head]) != 0 {
				t.Errorf("%v: wrong IP checksum", s)
			}
			pseudo := append(append(s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()...), 0, 6, 0, byte(20+payload))
			if checksum(pseudo, b[head:]) != 0 {
				t.Errorf("%v: wrong TCP checksum", s)
			}
		}
	}
}
