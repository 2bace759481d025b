package exporter

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"tcpcoroner/evidence"
)

const prefix = "tcpcoroner."

// list collects attributes; what has no value is left out: missing is not zero.
type list []attribute.KeyValue

func (l *list) add(kv ...attribute.KeyValue) { *l = append(*l, kv...) }

func (l *list) text(key, value string) {
	if value != "" {
		l.add(attribute.String(prefix+key, value))
	}
}

func (l *list) number(key string, value uint64) {
	l.add(attribute.Int64(prefix+key, int64(value)))
}

// incidentAttributes are those of the root span and of the incident's record.
func incidentAttributes(inc *evidence.Incident) []attribute.KeyValue {
	var l list
	l.text("incident.id", inc.ID)
	l.addFiring(inc)
	l.addVerdict(inc.Verdict.Claim())
	l.text("verdict", verdictName(inc.Verdict.Claim()))
	l.addWindow(&inc.Window)
	l.number("flows.total", uint64(inc.FlowsTotal))
	l.number("flows.implicated", uint64(inc.FlowsImplicated))
	l.text("capture.command", fmt.Sprintf("tcpcoroner pull %s -o %s.pcapng", inc.ID, inc.ID))
	l.addConntrack(inc)
	l.addListen(inc)
	return l
}

func (l *list) addFiring(inc *evidence.Incident) {
	if len(inc.Firings) == 0 {
		return
	}
	f := inc.Firings[0]
	l.text("trigger.name", f.Trigger)
	l.text("trigger.expression", f.Expression)
	l.add(attribute.Float64(prefix+"trigger.value", f.Value), attribute.Float64(prefix+"trigger.threshold", f.Threshold))
}

// addVerdict adds what the claims of incidents and of flows have in common.
func (l *list) addVerdict(c evidence.Claim) {
	l.text("verdict.confidence", string(c.Confidence))
	l.add(attribute.Bool(prefix+"verdict.benign", c.Benign))
	if c.Party != evidence.PartyUnknown {
		l.text("verdict.party", string(c.Party))
	}
	if c.Cause != evidence.CauseUnknown {
		l.text("verdict.cause", string(c.Cause))
	}
	by, known := resetBy[c.Origin]
	if !known {
		by = "unknown"
	}
	if by == "" {
		return
	}
	l.text("reset.by", by)
	l.text("reset.cause", causeOf(c.Mechanism))
	l.text("reset.layer", string(c.Layer))
}

func (l *list) addWindow(w *evidence.Window) {
	from := w.From
	if !w.HeldFrom.IsZero() {
		from = w.HeldFrom
	}
	if !from.IsZero() {
		l.text("window.start", from.UTC().Format(time.RFC3339Nano))
		l.add(attribute.Float64(prefix+"window.duration", w.To.Sub(from).Seconds()))
	}
	l.number("window.packets", uint64(w.PacketCount))
	l.number("window.dropped", w.Lost())
}

func (l *list) addConntrack(inc *evidence.Incident) {
	for _, s := range []*evidence.Snapshot{inc.At, inc.After} {
		if s == nil || s.Conntrack == nil {
			continue
		}
		l.number("conntrack.count", s.Conntrack.Count)
		l.number("conntrack.max", s.Conntrack.Max)
		var talkers []string
		for _, t := range s.Conntrack.TopTalkers {
			talkers = append(talkers, fmt.Sprintf("%v to %v %s: %d entries", t.Source, t.Destination, t.Protocol, t.Entries))
		}
		if talkers != nil {
			l.add(attribute.StringSlice(prefix+"conntrack.top_talkers", talkers))
		}
		return
	}
}

const listenOverflows = "TcpExt.ListenOverflows"

func (l *list) addListen(inc *evidence.Incident) {
	if _, ok := inc.Before.Values[listenOverflows]; ok {
		l.number("listen.overflows", inc.CounterDelta(listenOverflows))
	}
	for _, f := range inc.Firings {
		if len(f.Listeners) == 0 {
			continue
		}
		s := f.Listeners[0]
		l.text("listen.address", s.Local.String())
		l.number("listen.queue", uint64(s.RecvQueue))
		l.number("listen.backlog", uint64(s.SendQueue))
		if s.Owner != nil {
			l.number("listen.pid", uint64(s.Owner.PID))
			l.text("systemd.unit", s.Owner.Unit)
		}
		return
	}
}

// flowAttributes are those of a flow's span and of its record. client is the
// TCP initiator, also behind a proxy.
func flowAttributes(inc *evidence.Incident, f *evidence.Flow) []attribute.KeyValue {
	l := list{semconv.NetworkTransportTCP, networkType(f.Client.Addr())}
	l.text("incident.id", inc.ID)
	l.text("flow.id", f.ID)
	l.add(semconv.ClientAddress(address(f.Client)), semconv.ClientPort(int(f.Client.Port())),
		semconv.ServerAddress(address(f.Server)), semconv.ServerPort(int(f.Server.Port())))
	if f.Local.IsValid() {
		l.add(semconv.NetworkLocalAddress(address(f.Local)), semconv.NetworkLocalPort(int(f.Local.Port())))
	}
	if p := f.Peer(); p.IsValid() {
		l.add(semconv.NetworkPeerAddress(address(p)), semconv.NetworkPeerPort(int(p.Port())))
	}
	if e := errorType(f); e != "" {
		l.add(semconv.ErrorTypeKey.String(e))
	}
	l.addVerdict(f.Verdict.Claim())
	l.addReset(f.Reset)
	l.addOwner(f.Owner)
	return l
}

func (l *list) addReset(r *evidence.Reset) {
	if r == nil {
		return
	}
	l.number("reset.ttl", uint64(r.TTL))
	if r.Interface != "" {
		l.add(semconv.NetworkInterfaceName(r.Interface))
	}
}

func (l *list) addOwner(o *evidence.Owner) {
	if o == nil {
		return
	}
	l.add(semconv.ProcessPID(o.PID), semconv.ProcessExecutableName(o.Comm))
	if o.Exe != "" {
		l.add(semconv.ProcessExecutablePath(o.Exe))
	}
	if o.Cgroup != "" {
		l.add(semconv.ProcessLinuxCgroup(o.Cgroup))
	}
	if !o.Started.IsZero() {
		l.add(semconv.ProcessCreationTime(o.Started.UTC().Format(time.RFC3339Nano)))
	}
	l.text("systemd.unit", o.Unit)
}

func address(a netip.AddrPort) string { return a.Addr().Unmap().String() }

func networkType(a netip.Addr) attribute.KeyValue {
	if a.Unmap().Is4() {
		return semconv.NetworkTypeIPv4
	}
	return semconv.NetworkTypeIPv6
}

// stepAttributes is one packet: capture.packet sorts before tcp.flags, which is
// the order in which backends show them.
func stepAttributes(s evidence.Step) []attribute.KeyValue {
	return list{attribute.String("capture.packet", s.Line), attribute.String("tcp.flags", strings.ToUpper(s.Flags))}
}
