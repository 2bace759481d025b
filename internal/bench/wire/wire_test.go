package wire

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// packet is an IPv4 packet with a TCP header of 32 bytes.
func packet(seq uint32, flags byte, payload int) []byte {
	b := make([]byte, 52+payload)
	b[0], b[8], b[9] = 0x45, 64, tcpProtocol
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint32(b[24:], seq)
	b[32], b[33] = 0x80, flags
	return b
}

// ethernet writes a pcap file as tcpdump -s 96 does.
func ethernet(t *testing.T, at time.Time, packets ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapgo.NewWriterNanos(f)
	if err := w.WriteFileHeader(96, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		write(t, w, at, append(make([]byte, etherHeader), p...))
	}
	return path
}

// cooked writes a pcapng file as the product does.
func cooked(t *testing.T, at time.Time, packets ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "b.pcapng")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := pcapgo.NewNgWriter(f, layers.LinkTypeLinuxSLL2)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		write(t, w, at, append(make([]byte, sll2Header), p...))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, w interface {
	WritePacket(gopacket.CaptureInfo, []byte) error
}, at time.Time, b []byte) {
	t.Helper()
	info := gopacket.CaptureInfo{Timestamp: at, CaptureLength: min(96, len(b)), Length: len(b)}
	if err := w.WritePacket(info, b[:info.CaptureLength]); err != nil {
		t.Fatal(err)
	}
}

func TestCompare(t *testing.T) {
	now := time.Unix(1700000000, 5000)
	sum := packet(7, 0x10, 100)
	sum[36] = 9 // the checksum of a segment with payload
	bare := packet(8, 0x10, 0)
	bare[36] = 9
	for _, tt := range []struct {
		name                string
		a, b                [][]byte
		equal, onlyA, onlyB int
		example             string
	}{
		{"same", [][]byte{packet(1, 2, 0), packet(2, 4, 9)}, [][]byte{packet(2, 4, 9), packet(1, 2, 0)}, 2, 0, 0, ""},
		{"twice", [][]byte{packet(1, 2, 0), packet(1, 2, 0)}, [][]byte{packet(1, 2, 0)}, 1, 1, 0, ""},
		{"missing", nil, [][]byte{packet(1, 2, 0)}, 0, 0, 1, "no packet"},
		{"flag", [][]byte{packet(1, 2, 0)}, [][]byte{packet(1, 4, 0)}, 0, 1, 1, "flags 04 instead of 02"},
		{"checksum over payload", [][]byte{packet(7, 0x10, 100)}, [][]byte{sum}, 1, 0, 0, ""},
		{"checksum", [][]byte{packet(8, 0x10, 0)}, [][]byte{bare}, 0, 1, 1, "tcp checksum 0900"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Compare(ethernet(t, now, tt.a...), cooked(t, now.Add(time.Microsecond), tt.b...))
			if err != nil {
				t.Fatal(err)
			}
			if d.Equal != tt.equal || d.OnlyA != tt.onlyA || d.OnlyB != tt.onlyB || d.Skew > time.Microsecond {
				t.Errorf("%v", d)
			}
			if got := strings.Join(d.Examples, "\n"); !strings.Contains(got, tt.example) {
				t.Errorf("examples %q do not say %q", got, tt.example)
			}
		})
	}
}

func TestCountFiles(t *testing.T) {
	a := ethernet(t, time.Now(), packet(1, 2, 0), packet(2, 0x14, 0))
	b := cooked(t, time.Now(), packet(1, 0x04, 0))
	c, err := CountFiles(a, b)
	if err != nil || c.Packets != 3 || c.Resets != 2 || c.Bytes == 0 {
		t.Errorf("CountFiles = %+v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(append(make([]byte, etherHeader), packet(1, 2, 3)...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, ether bool) {
		link := layers.LinkTypeLinuxSLL2
		if ether {
			link = layers.LinkTypeEthernet
		}
		h, err := parse(link, b)
		if err == nil && h != nil {
			_ = h.Reset()
			_ = differing(fingerprint(h), fingerprint(h))
		}
	})
}
