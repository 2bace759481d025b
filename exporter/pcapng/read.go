package pcapng

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"tcpcoroner/evidence"
)

// ErrNotCapture is returned for a file that is neither pcapng nor pcap.
var ErrNotCapture = errors.New("not a pcapng or pcap file")

// record is one packet as a file holds it.
type record struct {
	data    []byte
	info    gopacket.CaptureInfo
	link    layers.LinkType
	name    string
	about   string // description of the interface
	options pcapgo.NgPacketOptions
	// own tells that a Writer wrote it: then it was recorded, whatever it is.
	own bool
}

// Read reads a capture file, ours or that of another program (pcapng or pcap,
// gzipped or not), as the recorder would have kept it: TCP and ICMP errors,
// headers only. Packets are numbered anew, in the order of time. The direction
// is unknown where the file does not tell it.
//
// Of a damaged file the packets before the damage are returned with the error, and
// of one with frames that cannot be read all others with the error of the first.
func Read(r io.Reader) (evidence.Window, error) {
	next, err := open(bufio.NewReader(r))
	if err != nil {
		return evidence.Window{}, fmt.Errorf("read capture: %w", err)
	}
	var b builder
	for n := 1; ; n++ {
		rec, err := next()
		if err == io.EOF {
			return b.window(), b.skipped
		}
		if err != nil {
			return b.window(), errors.Join(b.skipped, fmt.Errorf("read capture, packet %d: %w", n, err))
		}
		// A frame that is cut, or of a link that is not known, costs only itself.
		if err := b.add(&rec); err != nil && b.skipped == nil {
			b.skipped = fmt.Errorf("read capture, packet %d: %w", n, err)
		}
	}
}

// open finds the format by the first bytes.
func open(r *bufio.Reader) (next func() (record, error), err error) {
	magic, err := r.Peek(4)
	switch {
	case len(magic) == 0 && err == io.EOF:
		return nil, fmt.Errorf("%w: it is empty", ErrNotCapture)
	case err == io.EOF:
		return nil, fmt.Errorf("%w: it has %d bytes", ErrNotCapture, len(magic))
	case err != nil:
		return nil, err
	case magic[0] == 0x1f && magic[1] == 0x8b:
		unzipped, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		return openPlain(bufio.NewReader(unzipped))
	}
	return openPlain(r)
}

func openPlain(r *bufio.Reader) (func() (record, error), error) {
	magic, err := r.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotCapture, err)
	}
	if bytes.Equal(magic, []byte{0x0a, 0x0d, 0x0d, 0x0a}) {
		ng, err := pcapgo.NewNgReader(r, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			return nil, fmt.Errorf("section header: %w", err)
		}
		return func() (record, error) { return nextNg(ng) }, nil
	}
	old, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotCapture, err)
	}
	return func() (record, error) { return nextOld(old) }, nil
}

func nextNg(r *pcapgo.NgReader) (record, error) {
	data, info, options, err := r.ReadPacketDataWithOptions()
	if err != nil {
		return record{}, err
	}
	i, err := r.Interface(info.InterfaceIndex)
	return record{
		data: data, info: info, link: i.LinkType, name: i.Name, about: i.Description, options: options,
		own: strings.HasPrefix(r.SectionInfo().Application, application),
	}, err
}

// nextOld reads a pcap record. A file that ends behind a record's header is
// damaged, although the reader calls it the end.
func nextOld(r *pcapgo.Reader) (record, error) {
	data, info, err := r.ReadPacketData()
	if err == io.EOF && info.CaptureLength > 0 {
		err = io.ErrUnexpectedEOF
	}
	return record{data: data, info: info, link: r.LinkType()}, err
}

// builder makes a window of records.
type builder struct {
	win  evidence.Window
	last time.Time
	// skipped is why the first frame that could not be read could not.
	skipped error
}

func (b *builder) add(r *record) error {
	f, err := parseFrame(r.link, r.data)
	if err != nil {
		return err
	}
	b.addGaps(r)
	header, recorded := headers(r.data[min(f.ip, len(r.data)):])
	if f.skip || !recorded && !r.own {
		return nil
	}
	p := evidence.Packet{
		Nanos: r.info.Timestamp.UnixNano(), WireBytes: uint32(max(r.info.Length-f.ip, 0)),
		Direction: f.direction, LinkType: f.linkType, SrcMAC: f.mac, VLAN: f.vlan,
		Header: bytes.Clone(header),
	}
	if d, told := flagDirection(r.options.Flags, f.direction); told {
		p.Direction = d
	}
	if r.own {
		p.Sighting, p.Checksum = f.marks[0], evidence.ChecksumStatus(f.marks[1])
	}
	p.Namespace, p.Interface = b.interfaceOf(r, f)
	b.win.Packets = append(b.win.Packets, p)
	return nil
}

// flagDirection is the direction by the flags word of a packet block: it decides
// where the frame has none, and takes back one that was not known.
func flagDirection(flags *pcapgo.NgEpbFlags, framed evidence.Direction) (d evidence.Direction, told bool) {
	switch {
	case flags == nil:
		return d, false
	case flags.ToUint32() == 0 && framed != evidence.Elsewhere:
		return evidence.DirectionUnknown, true
	case framed != evidence.DirectionUnknown:
		return d, false
	case flags.Direction == pcapgo.NgEpbFlagDirectionInbound:
		return evidence.Received, true
	case flags.Direction == pcapgo.NgEpbFlagDirectionOutbound:
		return evidence.Sent, true
	}
	return d, false
}

// addGaps reads the losses that a packet tells of.
func (b *builder) addGaps(r *record) {
	before := b.last
	b.last = r.info.Timestamp
	told := false
	for _, c := range r.options.Comments {
		if g, ok := parseGap(c); ok {
			b.win.Gaps, told = append(b.win.Gaps, g), true
		}
	}
	if lost := r.options.DropCount; lost != nil && *lost > 0 && !told {
		b.win.Gaps = append(b.win.Gaps, evidence.Gap{
			From: before, To: r.info.Timestamp, Lost: *lost, Reason: "the capture file counts lost packets",
		})
	}
}

// interfaceOf is the namespace and the ifindex of a record's interface, which it
// adds to the window. Where the frame has none, they are numbered as the file
// does, from 1.
func (b *builder) interfaceOf(r *record, f frame) (namespace uint16, index uint32) {
	i := evidence.Interface{Index: f.index, Name: r.name, LinkType: f.linkType}
	if i.Index == 0 {
		i.Index = uint32(r.info.InterfaceIndex) + 1
	}
	if i.Name == "" || i.Name == "any" {
		i.Name = fmt.Sprintf("if%d", i.Index)
	}
	if n, ok := parseNamespace(r.about); ok && r.own {
		i.Namespace = n.Index
		if !slices.Contains(b.win.Namespaces, n) {
			b.win.Namespaces = append(b.win.Namespaces, n)
		}
		i.Name = strings.TrimSuffix(i.Name, "@"+n.Label())
	}
	known := func(o evidence.Interface) bool { return o.Index == i.Index && o.Namespace == i.Namespace }
	if !slices.ContainsFunc(b.win.Interfaces, known) {
		b.win.Interfaces = append(b.win.Interfaces, i)
	}
	return i.Namespace, i.Index
}

// window orders what was read and counts it.
func (b *builder) window() evidence.Window {
	w := b.win
	slices.SortStableFunc(w.Packets, func(x, y evidence.Packet) int { return cmp.Compare(x.Nanos, y.Nanos) })
	w.PacketCount = len(w.Packets)
	var s evidence.Segment
	for i := range w.Packets {
		p := &w.Packets[i]
		p.Number = i + 1
		if p.Sighting == 0 && evidence.ParseSegment(p, &s) == nil && s.Flags.Has(evidence.RST) {
			w.ResetCount++
		}
	}
	if n := len(w.Packets); n > 0 {
		w.From, w.To = w.Packets[0].Time(), w.Packets[n-1].Time()
	}
	return w
}
