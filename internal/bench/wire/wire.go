// Package wire reads two captures of the same traffic and says in which header
// fields they differ: its one job is to prove, in the benchmark, that what is
// kept in few bytes is what was on the wire. It is for the benchmark and must
// not be imported by anything that ships.
package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

const (
	etherHeader = 14
	sll2Header  = 20
	tcpProtocol = 6
	flagRST     = 0x04
)

// Header is the IP and TCP header of one packet, options included.
type Header struct {
	Time time.Time
	// IP is where TCP begins; Bytes begin at the IP header, end with TCP's, and are
	// valid until the next packet is read.
	Bytes []byte
	IP    int
	// Payload is the number of bytes after the headers, as the IP header says.
	Payload int
}

// Reset tells whether RST is set.
func (h *Header) Reset() bool { return h.Bytes[h.IP+13]&flagRST != 0 }

// Count is how many packets a capture holds.
type Count struct {
	Packets, Resets int
	// Bytes is the size of the file.
	Bytes int64
}

// source is what the two kinds of capture files have in common.
type source interface {
	ZeroCopyReadPacketData() ([]byte, gopacket.CaptureInfo, error)
	LinkType() layers.LinkType
}

// Read calls visit for each TCP packet of a pcap or pcapng file.
func Read(path string, visit func(*Header)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read capture: %w", err)
	}
	defer f.Close()
	s, err := open(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("read capture %s: %w", path, err)
	}
	if err := each(s, visit); err != nil {
		return fmt.Errorf("read capture %s: %w", path, err)
	}
	return nil
}

// sectionHeader begins every pcapng file.
const sectionHeader = 0x0a0d0d0a

func open(r *bufio.Reader) (source, error) {
	magic, err := r.Peek(4)
	if err != nil {
		return nil, err
	}
	if binary.NativeEndian.Uint32(magic) == sectionHeader {
		return pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	}
	return pcapgo.NewReader(r)
}

func each(s source, visit func(*Header)) error {
	for {
		frame, info, err := s.ZeroCopyReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h, err := parse(s.LinkType(), frame)
		if err != nil {
			return err
		}
		if h != nil {
			h.Time = info.Timestamp
			visit(h)
		}
	}
}

// parse finds the headers; nil if the packet is not TCP.
func parse(link layers.LinkType, frame []byte) (*Header, error) {
	skip := etherHeader
	switch link {
	case layers.LinkTypeEthernet:
	case layers.LinkTypeLinuxSLL2:
		skip = sll2Header
	default:
		return nil, fmt.Errorf("link type %d: can read Ethernet and LINUX_SLL2", link)
	}
	if len(frame) < skip+1 {
		return nil, fmt.Errorf("packet of %d bytes: too short for link type %d", len(frame), link)
	}
	return parseIP(frame[skip:])
}

var errShort = errors.New("it holds only a part of a header")

func parseIP(b []byte) (*Header, error) {
	var ip, total int
	switch {
	case b[0]>>4 == 4 && len(b) >= 20 && b[9] == tcpProtocol:
		ip, total = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	case b[0]>>4 == 6 && len(b) >= 40 && b[6] == tcpProtocol:
		ip, total = 40, 40+int(binary.BigEndian.Uint16(b[4:]))
	default:
		return nil, nil
	}
	if ip < 20 || len(b) < ip+20 {
		return nil, errShort
	}
	end := ip + int(b[ip+12]>>4)*4
	if end < ip+20 || len(b) < end {
		return nil, errShort
	}
	return &Header{Bytes: b[:end], IP: ip, Payload: total - end}, nil
}

// CountFiles counts the packets of captures.
func CountFiles(paths ...string) (c Count, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return c, fmt.Errorf("count packets: %w", err)
		}
		c.Bytes += info.Size()
		err = Read(path, func(h *Header) {
			c.Packets++
			if h.Reset() {
				c.Resets++
			}
		})
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// Difference says how two captures of the same traffic differ.
type Difference struct {
	// Equal packets have the same bytes in every field that was compared.
	Equal int
	// OnlyA and OnlyB have no equal in the other capture.
	OnlyA, OnlyB int
	// Skew is the largest difference of the two time stamps of a packet: each
	// socket takes its own where the kernel has not stamped the packet already.
	Skew time.Duration
	// Examples name the fields of the first packets that differ.
	Examples []string
}

func (d Difference) String() string {
	text := fmt.Sprintf("%d equal, %d only here, %d only there, clocks differ by %v at most", d.Equal, d.OnlyA, d.OnlyB, d.Skew)
	return strings.Join(append([]string{text}, d.Examples...), "\n  ")
}

// examples is how many differences are worth reading.
const examples = 5

// Compare compares packet by packet. All bytes of both headers count, but for
// the TCP checksum of a segment with payload: nobody can verify it without.
func Compare(a, b string) (Difference, error) {
	var d Difference
	left := map[string][]int64{} // header to times
	err := Read(a, func(h *Header) {
		key := fingerprint(h)
		left[key] = append(left[key], h.Time.UnixNano())
	})
	if err != nil {
		return d, err
	}
	var rest []string
	err = Read(b, func(h *Header) {
		key := fingerprint(h)
		times := left[key]
		if len(times) == 0 {
			d.OnlyB++
			if len(rest) < examples {
				rest = append(rest, key)
			}
			return
		}
		d.Equal++
		d.Skew = max(d.Skew, time.Duration(abs(times[0]-h.Time.UnixNano())))
		left[key] = times[1:]
	})
	for _, times := range left {
		d.OnlyA += len(times)
	}
	d.Examples = explain(left, rest)
	return d, err
}

func abs(n int64) int64 { return max(n, -n) }

// fingerprint is the header with the checksum of a segment with payload at 0.
func fingerprint(h *Header) string {
	b := slices.Clone(h.Bytes)
	if h.Payload > 0 {
		b[h.IP+16], b[h.IP+17] = 0, 0
	}
	return string(b)
}

// field is a part of an IPv4 or TCP header.
type field struct {
	name     string
	from, to int
}

var ipFields = []field{
	{"tos", 1, 2}, {"length", 2, 4}, {"id", 4, 6}, {"fragment", 6, 8}, {"ttl", 8, 9}, {"ip checksum", 10, 12},
	{"source", 12, 16}, {"destination", 16, 20},
}

var tcpFields = []field{
	{"ports", 0, 4}, {"seq", 4, 8}, {"ack", 8, 12}, {"offset", 12, 13}, {"flags", 13, 14}, {"window", 14, 16},
	{"tcp checksum", 16, 18}, {"urgent", 18, 20}, {"options", 20, 60},
}

// explain names for each packet without an equal the fields in which it differs
// from the most similar one that is left over on the other side.
func explain(left map[string][]int64, rest []string) (list []string) {
	for _, key := range rest {
		var best []string
		for other, times := range left {
			if len(times) == 0 {
				continue
			}
			if names := differing(other, key); best == nil || len(names) < len(best) {
				best = names
			}
		}
		if best == nil {
			best = []string{"no packet is left to compare with"}
		}
		list = append(list, fmt.Sprintf("%x: %s", key, strings.Join(best, "; ")))
	}
	return list
}

func differing(a, b string) (names []string) {
	if a[0] != b[0] || a[0]>>4 != 4 {
		return []string{"ip header"}
	}
	ip := int(a[0]&15) * 4
	note := func(f field, a, b string) {
		x, y := cut(a, f), cut(b, f)
		if x != y {
			names = append(names, fmt.Sprintf("%s %x instead of %x", f.name, y, x))
		}
	}
	for _, f := range ipFields {
		note(f, a, b)
	}
	for _, f := range tcpFields {
		note(f, a[ip:], b[ip:])
	}
	return names
}

func cut(s string, f field) string { return s[min(f.from, len(s)):min(f.to, len(s))] }
