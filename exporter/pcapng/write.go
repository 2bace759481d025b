// Package pcapng writes a frozen window as a capture file for Wireshark, with the
// verdict as packet comments, and reads capture files back as windows, so that
// recorded traffic can be judged again.
//
// It keeps packets as numbered in the window and never writes payload but the
// little that a RST may carry. It judges nothing.
package pcapng

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"tcpcoroner/evidence"
)

// application names the writer in the section header.
const application = "tcpcoroner"

// writer writes one window.
type writer struct {
	ng  *pcapgo.NgWriter
	win *evidence.Window
	// ids are the numbers of the interfaces in the file, by ifindex; kept counts
	// their packets.
	ids      map[uint32]int
	kept     []uint64
	comments map[int][]string
	gaps     []evidence.Gap
	buf      []byte
}

// Write writes win as pcapng. inc gives the comments and may be nil; win is a
// parameter of its own because an incident is stored without its packets.
// Packet n of the window is packet n of the file. Neither is changed or kept.
func Write(w io.Writer, inc *evidence.Incident, win *evidence.Window) error {
	if inc == nil {
		inc = &evidence.Incident{}
	}
	f := &writer{win: win, ids: map[uint32]int{}, comments: comments(inc), gaps: slices.Clone(win.Gaps)}
	slices.SortStableFunc(f.gaps, func(a, b evidence.Gap) int { return a.To.Compare(b.To) })
	if err := f.begin(w, inc); err != nil {
		return fmt.Errorf("write capture header: %w", err)
	}
	for i := range win.Packets {
		if err := f.packet(i); err != nil {
			return fmt.Errorf("write packet %d of %d: %w", i+1, len(win.Packets), err)
		}
	}
	if err := f.statistics(); err != nil {
		return fmt.Errorf("write interface statistics: %w", err)
	}
	if err := f.ng.Flush(); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// begin writes the section header and the interfaces.
func (f *writer) begin(w io.Writer, inc *evidence.Incident) (err error) {
	interfaces := f.interfaces()
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Application: clean(application + " " + inc.Version),
		Hardware:    runtime.GOARCH,
		OS:          clean("Linux " + inc.Host.Kernel),
		Comment:     sectionComment(inc, f.win),
	}}
	if f.ng, err = pcapgo.NewNgWriterInterface(w, interfaces[0], options); err != nil {
		return err
	}
	for _, i := range interfaces[1:] {
		if _, err := f.ng.AddInterface(i); err != nil {
			return err
		}
	}
	return nil
}

// interfaces numbers the interfaces of which the window holds packets. A file
// needs at least one: that of an empty window is "any", as the recorder listens.
func (f *writer) interfaces() (all []pcapgo.NgInterface) {
	for i := range f.win.Packets {
		index := f.win.Packets[i].Interface
		if _, known := f.ids[index]; known {
			continue
		}
		f.ids[index] = len(all)
		all = append(all, ngInterface(clean(f.win.InterfaceName(index))))
	}
	if all == nil {
		all = append(all, ngInterface("any"))
	}
	f.kept = make([]uint64, len(all))
	return all
}

func ngInterface(name string) pcapgo.NgInterface {
	return pcapgo.NgInterface{Name: name, LinkType: layers.LinkTypeLinuxSLL2}
}

func (f *writer) packet(i int) error {
	p := &f.win.Packets[i]
	header, _ := headers(p.Header)
	var tags int
	f.buf, tags = appendFrame(f.buf[:0], p, header)
	options := pcapgo.NgPacketOptions{
		Comments: slices.Clone(f.comments[i+1]),
		Flags:    &pcapgo.NgEpbFlags{Direction: epbDirection(p.Direction)},
	}
	f.gapsBefore(p, i == len(f.win.Packets)-1, &options)
	id := f.ids[p.Interface]
	f.kept[id]++
	return f.ng.WritePacketWithOptions(gopacket.CaptureInfo{
		Timestamp: p.Time(), InterfaceIndex: id, CaptureLength: len(f.buf),
		Length: max(int(p.WireBytes)+sll2Header+tags, len(f.buf)),
	}, f.buf, options)
}

// epbDirection is the direction in the flags word of a packet block; the word 0
// says that it is not known.
func epbDirection(d evidence.Direction) pcapgo.NgEpbFlag {
	switch d {
	case evidence.Received, evidence.Loopback:
		return pcapgo.NgEpbFlagDirectionInbound
	case evidence.Sent:
		return pcapgo.NgEpbFlagDirectionOutbound
	}
	return pcapgo.NgEpbFlagDirectionUnknown
}

// gapsBefore puts the gaps that end before p on it; those that end after the
// last packet too, for a comment needs a packet to stand on.
func (f *writer) gapsBefore(p *evidence.Packet, last bool, options *pcapgo.NgPacketOptions) {
	var lost uint64
	for len(f.gaps) > 0 && (last || !f.gaps[0].To.After(p.Time())) {
		g := f.gaps[0]
		f.gaps = f.gaps[1:]
		options.Comments = append(options.Comments, gapComment(g))
		if !g.To.After(p.Time()) {
			lost += g.Lost
		}
	}
	if lost > 0 {
		options.DropCount = &lost
	}
}

// statistics writes a block for each interface. The kernel counts losses for a
// socket, not for an interface: the sum stands at the first one only.
func (f *writer) statistics() error {
	for id, kept := range f.kept {
		s := pcapgo.NgInterfaceStatistics{
			LastUpdate: f.end(), PacketsReceived: kept, PacketsDropped: pcapgo.NgNoValue64,
		}
		if id == 0 {
			s.PacketsDropped = f.win.Lost()
		}
		if err := f.ng.WriteInterfaceStats(id, s); err != nil {
			return err
		}
	}
	return nil
}

func (f *writer) end() time.Time {
	if n := len(f.win.Packets); n > 0 && f.win.To.Before(f.win.Packets[n-1].Time()) {
		return f.win.Packets[n-1].Time()
	}
	return f.win.To
}
