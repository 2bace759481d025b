// Package pcapng writes a frozen window as a capture file for Wireshark, with the
// verdict as packet comments, and reads capture files back as windows, so that
// recorded traffic can be judged again.
//
// It keeps packets as numbered in the window and never writes payload but the
// little that a RST may carry. It judges nothing.
package pcapng

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"

	"tcpcoroner/evidence"
)

// application names the writer in the section header.
const application = "tcpcoroner"

// writeBuffer is the size of the pieces that are written.
const writeBuffer = 64 << 10

// Writer writes one window, packet by packet, in memory that does not grow with
// their number. It must not be used concurrently.
type Writer struct {
	w   *bufio.Writer
	win *evidence.Window
	// ids are the numbers of the interfaces in the file.
	ids      map[interfaceID]int
	kept     []uint64 // packets of each
	comments map[int][]string
	gaps     []evidence.Gap
	block    block
	// pending tells that block holds a packet that is not complete: gaps that end
	// behind the last packet are told by its comments.
	pending bool
	written int
	last    int64 // the time of the last packet
	err     error
}

type interfaceID struct {
	namespace uint16
	index     uint32
}

// NewWriter begins a capture file of a window. inc gives the comments and may be
// nil; of win its Packets are not read. Neither is changed, win is kept until
// Close. The packets come by WritePacket, and Close completes the file.
func NewWriter(w io.Writer, inc *evidence.Incident, win *evidence.Window) (*Writer, error) {
	if inc == nil {
		inc = &evidence.Incident{}
	}
	f := &Writer{
		w: bufio.NewWriterSize(w, writeBuffer), win: win, ids: map[interfaceID]int{},
		comments: comments(inc), gaps: slices.Clone(win.Gaps),
	}
	slices.SortStableFunc(f.gaps, func(a, b evidence.Gap) int { return a.To.Compare(b.To) })
	f.block.begin(blockSection)
	f.block.u32(byteOrderMagic)
	f.block.u32(1)              // version 1.0
	f.block.u32(math.MaxUint32) // the length of the section is not known
	f.block.u32(math.MaxUint32)
	f.block.text(optComment, sectionComment(inc, win))
	f.block.text(optHardware, runtime.GOARCH)
	f.block.text(optOS, clean("Linux "+inc.Host.Kernel))
	f.block.text(optApplication, clean(application+" "+inc.Version))
	if _, err := f.w.Write(f.block.end()); err != nil {
		return nil, fmt.Errorf("write capture header: %w", err)
	}
	return f, nil
}

// WritePacket adds the next packet, in the order of time. Packet n of the window
// becomes packet n of the file if it gets all of them. Nothing of p is kept. After
// an error, it and Close return that error.
func (f *Writer) WritePacket(p *evidence.Packet) error {
	id, err := f.interfaceOf(p)
	if err == nil {
		err = f.flush()
	}
	if err != nil {
		return f.fail(fmt.Errorf("write packet %d of %d: %w", f.written, f.win.PacketCount, err))
	}
	f.written++
	f.kept[id]++
	f.last = p.Nanos
	header, _ := headers(p.Header)
	k := &f.block
	k.begin(blockPacket)
	k.u32(uint32(id))
	k.time(p.Nanos)
	k.u32(0) // captured and original length come below
	k.u32(0)
	f.frame(p, header)
	k.option32(optFlags, epbDirection(p.Direction))
	f.remarks(p)
	f.pending = true
	return nil
}

// frame appends link-layer header and packet, and writes their lengths.
func (f *Writer) frame(p *evidence.Packet, header []byte) {
	k := &f.block
	at := len(k.b)
	var tags int
	k.b, tags = appendFrame(k.b, p, header)
	n := uint32(len(k.b) - at)
	putU32(k.b[at-8:], n)
	putU32(k.b[at-4:], max(p.WireBytes+uint32(sll2Header+tags), n))
	k.pad()
}

// remarks adds the comments of a packet and the gaps that end before it.
func (f *Writer) remarks(p *evidence.Packet) {
	number := p.Number
	if number == 0 {
		number = f.written
	}
	for _, c := range f.comments[number] {
		f.block.text(optComment, c)
	}
	var lost uint64
	for len(f.gaps) > 0 && f.gaps[0].To.UnixNano() <= p.Nanos {
		f.block.text(optComment, gapComment(f.gaps[0]))
		lost += f.gaps[0].Lost
		f.gaps = f.gaps[1:]
	}
	if lost > 0 {
		f.block.option64(optDropCount, lost)
	}
}

// flush writes the packet that is pending.
func (f *Writer) flush() error {
	if f.err != nil || !f.pending {
		return f.err
	}
	f.pending = false
	_, err := f.w.Write(f.block.end())
	return err
}

func (f *Writer) fail(err error) error {
	if f.err == nil {
		f.err = err
	}
	return f.err
}

// interfaceOf is the number of a packet's interface in the file; it is described
// ahead of its first packet.
func (f *Writer) interfaceOf(p *evidence.Packet) (int, error) {
	key := interfaceID{p.Namespace, p.Interface}
	if id, known := f.ids[key]; known {
		return id, nil
	}
	if err := f.flush(); err != nil {
		return 0, err
	}
	id := len(f.kept)
	f.ids[key] = id
	return id, f.describe(clean(f.win.InterfaceOf(p)), namespaceText(f.win, p.Namespace))
}

func (f *Writer) describe(name, description string) error {
	f.kept = append(f.kept, 0)
	k := &f.block
	k.begin(blockInterface)
	k.u16(linkTypeSLL2)
	k.u16(0)
	k.u32(0) // no limit of the captured length
	k.text(optName, name)
	k.text(optDescription, description)
	k.option8(optResolution, 9) // nanoseconds
	_, err := f.w.Write(k.end())
	return err
}

// epbDirection is the direction in the flags word of a packet block; the word 0
// says that it is not known.
func epbDirection(d evidence.Direction) uint32 {
	switch d {
	case evidence.Received, evidence.Loopback:
		return 1
	case evidence.Sent:
		return 2
	}
	return 0
}

// Close completes the file; it does not close what the file is written to. The
// gaps behind the last packet are told by that one, for a comment needs a packet
// to stand on.
func (f *Writer) Close() error {
	if f.pending {
		for _, g := range f.gaps {
			f.block.text(optComment, gapComment(g))
		}
	}
	err := f.flush()
	if err == nil && len(f.kept) == 0 { // a file needs an interface: the recorder listens on "any"
		err = f.describe("any", "")
	}
	if err == nil {
		err = f.statistics()
	}
	if err == nil {
		err = f.w.Flush()
	}
	if err != nil {
		return f.fail(fmt.Errorf("write capture, end: %w", err))
	}
	return nil
}

// statistics writes a block for each interface. The kernel counts losses for a
// socket, not for an interface: the sum stands at the first one only.
func (f *Writer) statistics() error {
	end := f.last
	if !f.win.To.IsZero() {
		end = max(end, f.win.To.UnixNano())
	}
	for id, kept := range f.kept {
		k := &f.block
		k.begin(blockStatistics)
		k.u32(uint32(id))
		k.time(end)
		k.option64(optReceived, kept)
		if id == 0 {
			k.option64(optDropped, f.win.Lost())
		}
		if _, err := f.w.Write(k.end()); err != nil {
			return err
		}
	}
	return nil
}
