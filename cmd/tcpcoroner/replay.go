package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/pcapng"
	"tcpcoroner/recorder"
	"tcpcoroner/triggers"
)

// replaying is what `replay` was asked for.
type replaying struct {
	outcome
	local, localMAC string
}

func replayCommand(e *env) *cobra.Command {
	var o replaying
	c := &cobra.Command{
		Use:   "replay [HOST=]FILE... [--roles FILE] [--vantage HOST] [--local ADDRESS,...] [--local-mac MAC,...] [--format text|json|rstlab-verdict/1]",
		Short: "judge capture files, from tcpdump too, as if they had been recorded", Args: usageArgs(cobra.MinimumNArgs(1)),
		Long: "replay reads captures of one host, pcap or pcapng, gzipped or not, one file an interface or all in one, and judges\n" +
			"them by the same rules as an incident, with the evidence that packets are: no process, no socket, no counter.\n" +
			"Payload in the files is not kept.\n\n" +
			"Who sent a RST shows by its direction. `tcpdump -i any` and our own captures tell it; for others say what is\n" +
			"local: --local-mac for Ethernet (works on a router, too), or --local for the host's addresses or networks.\n\n" +
			"Captures of several hosts on the path of the same connections are judged together if each is given as HOST=FILE\n" +
			"(as are --local and --local-mac: HOST=ADDRESS): each flow is told once, from the host that sent the RST, which the\n" +
			"report names as a namespace. Their clocks must agree to 50 ms.\n\n" +
			"Of a damaged file the packets before the damage are judged; the exit code is 1 then.",
		RunE: func(c *cobra.Command, args []string) error { return e.replay(c.Context(), args, o) },
	}
	o.flags(c)
	c.Flags().StringVar(&o.vantage, "vantage", "", "name of the host that the files were captured on")
	c.Flags().StringVar(&o.local, "local", "", "addresses or networks of that host, separated by commas, or HOST=ADDRESS")
	c.Flags().StringVar(&o.localMAC, "local-mac", "", "link-layer addresses of that host, separated by commas, or HOST=MAC")
	return c
}

func (e *env) replay(ctx context.Context, files []string, o replaying) error {
	if err := o.check(e); err != nil {
		return err
	}
	roles, err := loadRoles(o.roles)
	if err != nil {
		return err
	}
	hosts, err := byHost(files, o.local, o.localMAC)
	if err != nil {
		return usageError{err}
	}
	w, known, damage := readHosts(hosts)
	if len(w.Packets) == 0 {
		return errors.Join(damage, fmt.Errorf("replay: no TCP packet in %s: give captures that hold some", strings.Join(files, ", ")))
	}
	if known == 0 {
		fmt.Fprintln(e.stderr, "tcpcoroner: the files do not tell which way packets went: give --local-mac or --local, otherwise nobody can be named")
	}
	inc, err := rejudge(ctx, w, evidence.Host{Name: o.vantage}, roles)
	if err != nil {
		return errors.Join(damage, err)
	}
	return errors.Join(o.tell(e, inc), damage)
}

func readCapture(name string) (evidence.Window, error) {
	f, err := os.Open(name)
	if err != nil {
		return evidence.Window{}, err
	}
	defer f.Close()
	return pcapng.Read(f)
}

// merger puts the windows of several files together.
type merger struct{ win evidence.Window }

// add takes a file's packets over. Several files may number different interfaces
// alike: each gets a number of its own then, and a name after its file.
func (m *merger) add(w *evidence.Window, file string, several bool) {
	if several {
		m.renumber(w, file)
	}
	m.win.Interfaces = append(m.win.Interfaces, w.Interfaces...)
	for _, n := range w.Namespaces {
		if !slices.Contains(m.win.Namespaces, n) {
			m.win.Namespaces = append(m.win.Namespaces, n)
		}
	}
	m.win.Gaps = append(m.win.Gaps, w.Gaps...)
	m.win.Packets = append(m.win.Packets, w.Packets...)
}

func (m *merger) renumber(w *evidence.Window, file string) {
	stem, _, _ := strings.Cut(filepath.Base(file), ".pcap")
	numbers := map[uint32]uint32{}
	for i := range w.Interfaces {
		f := &w.Interfaces[i]
		if _, known := numbers[f.Index]; !known {
			numbers[f.Index] = uint32(len(m.win.Interfaces) + len(numbers) + 1)
		}
		if f.Name == fmt.Sprintf("if%d", f.Index) && len(w.Interfaces) == 1 {
			f.Name = stem
		}
		f.Index = numbers[f.Index]
	}
	for i := range w.Packets {
		w.Packets[i].Interface = numbers[w.Packets[i].Interface]
	}
}

func (m *merger) window() evidence.Window {
	w := m.win
	slices.SortStableFunc(w.Packets, func(a, b evidence.Packet) int { return cmp.Compare(a.Nanos, b.Nanos) })
	if n := len(w.Packets); n > 0 {
		w.From, w.To = w.Packets[0].Time(), w.Packets[n-1].Time()
	}
	return w
}

// locality says what is local to the host that captured.
type locality struct {
	networks []netip.Prefix
	macs     [][6]byte
}

func parseLocality(addresses, macs string) (l locality, err error) {
	for _, text := range listOf(addresses) {
		p, err := parseNetwork(text)
		if err != nil {
			return l, fmt.Errorf("--local: %w", err)
		}
		l.networks = append(l.networks, p)
	}
	for _, text := range listOf(macs) {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 {
			return l, fmt.Errorf("--local-mac: %q is not a link-layer address: write it as 02:00:00:00:00:01", text)
		}
		l.macs = append(l.macs, [6]byte(mac))
	}
	return l, nil
}

// orient gives packets that have none a direction, and counts those that have one
// in the end.
func (l *locality) orient(packets []evidence.Packet) (known int) {
	for i := range packets {
		p := &packets[i]
		if p.Direction == evidence.DirectionUnknown {
			p.Direction = l.direction(p)
		}
		if p.Direction != evidence.DirectionUnknown {
			known++
		}
	}
	return known
}

// direction by the sender's link-layer address, which a router's host shows as
// well; without, by the addresses of the packet's outer header.
func (l *locality) direction(p *evidence.Packet) evidence.Direction {
	if len(l.macs) > 0 && p.SrcMAC != [6]byte{} {
		if slices.Contains(l.macs, p.SrcMAC) {
			return evidence.Sent
		}
		return evidence.Received
	}
	h, err := evidence.FirstIP(p.Header, int(p.WireBytes))
	if err != nil {
		return evidence.DirectionUnknown
	}
	src, dst := addressesOf(p.Header, h.Version)
	switch from, to := l.has(src), l.has(dst); {
	case from && !to:
		return evidence.Sent
	case to && !from:
		return evidence.Received
	}
	return evidence.DirectionUnknown
}

// addressesOf reads the addresses of a header that FirstIP has checked.
func addressesOf(header []byte, ipVersion uint8) (src, dst netip.Addr) {
	if ipVersion == 4 {
		return netip.AddrFrom4([4]byte(header[12:16])), netip.AddrFrom4([4]byte(header[16:20]))
	}
	return netip.AddrFrom16([16]byte(header[8:24])), netip.AddrFrom16([16]byte(header[24:40]))
}

func (l *locality) has(a netip.Addr) bool {
	return slices.ContainsFunc(l.networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// replayRoom is what a replayed packet takes in the recorder at most, beside its
// header.
const replayRoom = 64

// rejudge has the recorder see the packets as if they came in now, so that
// further sightings and checksums are told, and triggers fire, as in a live
// capture; then it judges what the recorder kept.
func rejudge(ctx context.Context, w evidence.Window, host evidence.Host, roles []evidence.Role) (*evidence.Incident, error) {
	need := recorder.MinMemory
	for i := range w.Packets {
		need += len(w.Packets[i].Header) + replayRoom
	}
	r, err := recorder.New(recorder.Config{Memory: 2*need + recorder.DefaultMemory})
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	inc := &evidence.Incident{
		Schema: evidence.SchemaIncident, ID: replayID(w.From), Version: version, Host: host, Time: w.From, Closed: w.To, Roles: roles,
	}
	err = rejudgeIn(ctx, r, w, inc)
	return inc, errors.Join(err, r.Close())
}

func rejudgeIn(ctx context.Context, r *recorder.Recorder, w evidence.Window, inc *evidence.Incident) error {
	watch := replayTriggers(r)
	source := &timed{Replay: recorder.Replay{Packets: w.Packets, Known: w.Interfaces}, second: func(now time.Time) {
		fired, _ := watch.Check(now)
		inc.Firings = append(inc.Firings, fired...)
	}}
	if err := r.Run(ctx, source); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	frozen, err := r.Freeze(ctx, w.From, w.To)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	defer frozen.Release()
	if len(inc.Firings) > 0 {
		inc.Time, inc.Joined = inc.Firings[0].Time, len(inc.Firings)-1
	}
	inc.Window = frozen.Window()
	inc.Window.Interfaces, inc.Window.Namespaces = w.Interfaces, w.Namespaces
	inc.Window.Gaps = append(w.Gaps, inc.Window.Gaps...)
	judge(inc, frozen.ReadNeeded, nil)
	return nil
}

// judge is the keeper's, for an incident that is in no store.
func judge(inc *evidence.Incident, read reading, ignored []uint16) {
	k := keeper{probes: func() []uint16 { return ignored }}
	k.judge(inc, read)
}

// replayTriggers are those that need nothing but packets.
func replayTriggers(r *recorder.Recorder) *triggers.Set {
	return triggers.NewSet(triggers.DefaultSet(),
		triggers.NewHarm(triggers.DefaultHarm(), r.Harm),
		triggers.NewResets(triggers.DefaultResets(), func() uint64 { return r.Stats().Resets }))
}

// timed is a replay that tells when another second of the packets' time is over.
type timed struct {
	recorder.Replay
	second func(now time.Time)
}

// maxSilence bounds the seconds that are told while there is no packet: longer
// silence changes nothing that a trigger knows.
const maxSilence = 60

// Run implements recorder.Source.
func (t *timed) Run(ctx context.Context, sink recorder.Sink) error {
	rest := t.Packets
	for now := int64(0); len(rest) > 0 && ctx.Err() == nil; now++ {
		if first := secondOf(&rest[0]); now == 0 || first-now > maxSilence {
			now = first
		}
		n := slices.IndexFunc(rest, func(p evidence.Packet) bool { return secondOf(&p) > now })
		if n < 0 {
			n = len(rest)
		}
		part := recorder.Replay{Packets: rest[:n]}
		if err := part.Run(ctx, sink); err != nil {
			return err
		}
		t.second(time.Unix(now+1, 0))
		rest = rest[n:]
	}
	return ctx.Err()
}

// secondOf counts in seconds, which cannot overflow: a damaged file may hold any
// time.
func secondOf(p *evidence.Packet) int64 { return p.Nanos / int64(time.Second) }

// replayID is the same for the same packets.
func replayID(first time.Time) string {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(first)) // fails beyond the year 10889 only
	return id.String()
}
