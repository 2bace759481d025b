package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"tcpcoroner/evidence"
)

// Text writes the report of an incident, 100 columns wide, with times in zone.
// What does not apply to the incident is left out.
func Text(w io.Writer, inc *evidence.Incident, zone *time.Location) error {
	p := &page{inc: inc, zone: zone}
	for _, section := range []func(*page){
		verdict, facts, findings, flows, timeline,
		kernelEvents, ledger, logLines, rules, processes, changes,
		listeners, conntrack, counters, interfaces, missing, next,
	} {
		section(p)
	}
	if _, err := w.Write(p.b.Bytes()); err != nil {
		return fmt.Errorf("write report of incident %s: %w", inc.ID, err)
	}
	return nil
}

func verdict(p *page) {
	c := p.inc.Verdict.Claim()
	p.text("verdict  ", "%s %s", c.Sentence, stands(c))
	said(p, &c)
	if c.Settle != "" {
		p.text("         ", "What would settle it: %s", c.Settle)
	}
	p.b.WriteString("\n")
}

// facts are when, where, what fired, and what the recorder has of it.
func facts(p *page) {
	inc := p.inc
	p.text("incident ", "%s on %s, Linux %s", inc.ID, inc.Host.Name, inc.Host.Kernel)
	p.text("time     ", "%s, window closed at %s", inc.Time.In(p.zone).Format("2006-01-02 15:04:05.000 MST"), p.clock(inc.Closed))
	for i := range inc.Firings {
		firing(p, &inc.Firings[i])
	}
	if more := inc.Joined + 1 - len(inc.Firings); more > 0 && len(inc.Firings) > 0 {
		p.text("         ", "and %s that joined", plural(more, "firing"))
	}
	window(p)
}

func firing(p *page, f *evidence.Firing) {
	p.text("trigger  ", "%s: %s", f.Trigger, f.Reason)
	if f.Threshold != 0 {
		p.text("         ", "%s: value %.4g, threshold %.4g, baseline %.4g", f.Expression, f.Value, f.Threshold, f.Baseline)
	}
}

func window(p *page) {
	w := &p.inc.Window
	from, held := w.From, ""
	if w.HeldFrom.After(w.From) {
		from = w.HeldFrom
		held = fmt.Sprintf(" (%s asked for; the buffer held no more)", length(w.To.Sub(w.From)))
	}
	var names []string
	for _, i := range w.Interfaces {
		name := i.Name
		if i.Namespace != 0 {
			name += "@" + w.NamespaceLabel(i.Namespace)
		}
		names = append(names, name)
	}
	p.text("window   ", "%s%s, %s, %s on %s", length(w.To.Sub(from)), held,
		plural(w.PacketCount, "packet"), plural(w.ResetCount, "reset"), list(names, 8))
	gaps(p, w)
	if w.Cut {
		p.text("         ", "the verdict is drawn from a part of the packets that it needs: there were too many")
	}
}

// maxGaps bounds the gaps that are told one by one.
const maxGaps = 5

// gaps are losses, and stretches in which the recorder kept less: they have a
// reason and no number.
func gaps(p *page, w *evidence.Window) {
	if len(w.Gaps) == 0 {
		p.text("         ", "no packet lost by the recorder")
		return
	}
	if missing := slices.DeleteFunc(slices.Clone(w.Gaps), func(g evidence.Gap) bool { return g.Complete }); len(missing) > 0 {
		p.text("         ", "INCOMPLETE: %s, %s lost", plural(len(missing), "gap"), plural(w.Lost(), "packet"))
	} else {
		p.text("         ", "no packet lost by the recorder")
	}
	for _, g := range w.Gaps[:min(len(w.Gaps), maxGaps)] {
		what := g.Reason
		if g.Lost > 0 {
			what = fmt.Sprintf("%s lost, %s", count(g.Lost), g.Reason)
		}
		p.text("         ", "%s to %s: %s", p.clock(g.From), p.clock(g.To), what)
	}
	if more := len(w.Gaps) - maxGaps; more > 0 {
		p.text("         ", "and %s more", plural(more, "gap"))
	}
}

// length is a duration as people say it.
func length(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// list joins names, at most n.
func list(names []string, n int) string {
	if len(names) == 0 {
		return "no interface"
	}
	if len(names) > n {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), len(names)-n)
	}
	return strings.Join(names, ", ")
}

func findings(p *page) {
	all := p.inc.Verdict.Findings()
	if len(all) == 0 {
		return
	}
	p.heading("EVIDENCE")
	for _, against := range []bool{false, true} {
		for _, f := range all {
			if f.Against == against {
				finding(p, f)
			}
		}
	}
}

func finding(p *page, f evidence.Finding) {
	label := "  for      "
	if f.Against {
		label = "  AGAINST  "
	}
	text := fmt.Sprintf("%s [%s", f.Text, f.Kind)
	if len(f.Packets) > 0 {
		var numbers []string
		for _, n := range f.Packets {
			numbers = append(numbers, fmt.Sprint(n))
		}
		text += "; see packet " + list(numbers, 6)
	}
	if f.Source != "" {
		text += "; " + f.Source
	}
	p.text(label, "%s]", text)
}

// listeners are those that were full at the firing or in a snapshot.
func listeners(p *page) {
	type key struct {
		local string
		inode uint32
	}
	seen := map[key]bool{}
	add := func(s *evidence.Socket) {
		k := key{s.Local.String(), s.Inode}
		if !s.Listening() || s.RecvQueue < max(s.SendQueue, 1) || seen[k] {
			return
		}
		seen[k] = true
		p.row(k.local, count(uint64(s.RecvQueue)), count(uint64(s.SendQueue)), owner(s.Owner))
	}
	for _, f := range p.inc.Firings {
		each(f.Listeners, add)
	}
	for _, s := range p.snapshots() {
		each(s.Sockets, add)
	}
	if len(p.table) == 0 {
		return
	}
	p.heading("LISTENERS WITH A FULL ACCEPT QUEUE")
	p.table = slices.Insert(p.table, 0, []string{"LISTENER", "QUEUE", "BACKLOG", "OWNER"})
	p.flush()
}

func each(sockets []evidence.Socket, do func(*evidence.Socket)) {
	for i := range sockets {
		do(&sockets[i])
	}
}

func (p *page) snapshots() (all []*evidence.Snapshot) {
	for _, s := range []*evidence.Snapshot{p.inc.At, p.inc.After} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// maxTalkers bounds the rows of conntrack.
const maxTalkers = 5

// crowded is the use of the table from which it is worth showing unasked.
const crowded = 0.8

func conntrack(p *page) {
	fired := slices.ContainsFunc(p.inc.Firings, func(f evidence.Firing) bool { return f.Trigger == "conntrack" })
	var ct *evidence.Conntrack
	for _, s := range p.snapshots() {
		if ct == nil {
			ct = s.Conntrack
		}
	}
	if ct == nil || !fired && ct.Usage() < crowded {
		return
	}
	p.heading("CONNTRACK %s of %s entries (%.1f %%)", count(ct.Count), count(ct.Max), ct.Usage()*100)
	p.text("  ", "since boot: drop %s, early_drop %s, insert_failed %s, invalid %s",
		count(ct.Drop), count(ct.EarlyDrop), count(ct.InsertFailed), count(ct.Invalid))
	if len(ct.TopTalkers) == 0 {
		return
	}
	if ct.Sampled < ct.Count {
		p.text("  ", "talkers counted in the first %s entries", count(ct.Sampled))
	}
	p.row("ENTRIES", "PROTOCOL", "SOURCE", "DESTINATION")
	for _, t := range ct.TopTalkers[:min(len(ct.TopTalkers), maxTalkers)] {
		p.row(count(t.Entries), t.Protocol, t.Source.String(), t.Destination.String())
	}
	p.flush()
}

// telling are the counters that tell of resets and their causes, with the words
// of /proc/net/snmp and /proc/net/netstat, and what a person calls them.
var telling = []struct{ name, meaning string }{
	{"Tcp.OutRsts", "resets sent"},
	{"Tcp.EstabResets", "connections reset while established or in CLOSE-WAIT"},
	{"Tcp.AttemptFails", "connection attempts that failed"},
	{"TcpExt.EmbryonicRsts", "resets received in the handshake"},
	{"TcpExt.ListenOverflows", "connections lost to a full accept queue"},
	{"TcpExt.ListenDrops", "connections lost by listeners, for any reason"},
	{"TcpExt.TCPReqQFullDrop", "SYNs dropped, request queue full"},
	{"TcpExt.TCPReqQFullDoCookies", "SYN cookies sent, request queue full"},
	{"TcpExt.SyncookiesFailed", "ACKs with a bad SYN cookie"},
	{"TcpExt.TCPAbortOnData", "reset: data came after close, or SO_LINGER 0"},
	{"TcpExt.TCPAbortOnClose", "reset: closed with unread data"},
	{"TcpExt.TCPAbortOnMemory", "reset: out of socket memory or orphans"},
	{"TcpExt.TCPAbortOnTimeout", "given up: no answer to data or keepalives"},
	{"TcpExt.TCPAbortOnLinger", "reset: linger time was over"},
	{"TcpExt.TCPAbortFailed", "resets that could not be sent"},
	{"TcpExt.TCPMemoryPressures", "entered memory pressure"},
	{"TcpExt.TCPChallengeACK", "challenge ACKs: segments that did not fit"},
	{"TcpExt.TCPSYNChallenge", "SYNs for an established connection"},
	{"TcpExt.PAWSEstab", "segments with an old timestamp"},
	{"TcpExt.TCPBacklogDrop", "segments dropped, socket backlog full"},
	{"TcpExt.TCPTimeouts", "retransmission timeouts"},
	{"TcpExt.TCPSynRetrans", "SYNs sent again"},
	{"Tcp.RetransSegs", "segments sent again"},
	{"Tcp.InErrs", "bad segments received"},
	{"TcpExt.TCPMTUPFail", "MTU probes that failed"},
	{"TcpExt.TCPTimeWaitOverflow", "TIME-WAIT sockets over the limit"},
}

func counters(p *page) {
	for _, c := range telling {
		if d := p.inc.CounterDelta(c.name); d > 0 {
			p.row("+"+count(d), c.name, c.meaning)
		}
	}
	if len(p.table) == 0 {
		return
	}
	p.heading("COUNTERS THAT MOVED since %s", p.clock(p.inc.Before.Time))
	p.flush()
}

// interfaces shows those that lost packets since boot, and how many of them after
// the firing.
func interfaces(p *page) {
	all := p.snapshots()
	if len(all) == 0 {
		return
	}
	first := map[uint32]evidence.InterfaceStats{}
	for _, i := range all[0].Interfaces {
		first[i.Index] = i
	}
	for _, i := range all[len(all)-1].Interfaces {
		was := first[i.Index]
		if i.RxDropped+i.TxDropped+i.RxMissed+i.RxErrors+i.TxErrors > 0 {
			p.row(i.Name, moved(was.RxDropped, i.RxDropped), moved(was.TxDropped, i.TxDropped),
				moved(was.RxMissed, i.RxMissed), moved(was.RxErrors, i.RxErrors), moved(was.TxErrors, i.TxErrors))
		}
	}
	if len(p.table) == 0 {
		return
	}
	p.heading("INTERFACES THAT LOST PACKETS since boot (+ after the trigger)")
	p.table = slices.Insert(p.table, 0, []string{"INTERFACE", "RX DROPPED", "TX DROPPED", "RX MISSED", "RX ERRORS", "TX ERRORS"})
	p.flush()
}

func moved(was, is uint64) string {
	if is > was {
		return fmt.Sprintf("%s (+%s)", count(is), count(is-was))
	}
	return count(is)
}

func missing(p *page) {
	all := p.inc.Missing()
	if len(all) == 0 {
		return
	}
	p.heading("NOT SEEN")
	for _, m := range all {
		p.text("  ", "%s: %s", m.What, m.Why)
		if m.Fix != "" {
			p.text("    ", "to have it next time: %s", m.Fix)
		}
	}
}

func next(p *page) {
	p.heading("CAPTURE")
	p.text("  ", "tcpcoroner pull %s", p.inc.ID)
	p.text("  ", "packets are numbered there as here; in Wireshark, the resets with their verdicts:")
	p.text("  ", "tcp.flags.reset == 1 && frame.comment")
	if p.inc.TraceID != "" {
		p.text("  ", "in the tracing backend: trace %s", p.inc.TraceID)
	}
}

// bytesOf is an amount of payload.
func bytesOf(n uint64) string { return humanize.IBytes(n) }
