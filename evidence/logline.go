package evidence

import (
	"net/netip"
	"time"
)

// LogSource is the kind of log that a line is from.
type LogSource string

// The sources. A line that reached the journal in a proxy's format is the proxy's.
const (
	LogJournal    LogSource = "journal"
	LogKernel     LogSource = "kernel"
	LogFile       LogSource = "file"
	LogNginxError LogSource = "nginx.error"
	// LogNginxAccess is the combined format, which other servers write too.
	LogNginxAccess LogSource = "nginx.access"
	LogHAProxy     LogSource = "haproxy"
	LogEnvoyAccess LogSource = "envoy.access"
)

// LogParty is the side that a line blames. After a timeout that is the side that
// stayed silent; the timer is the writer's. Empty if the line leaves it open.
type LogParty string

// The parties, seen from the program that wrote the line.
const (
	PartyClient  LogParty = "client"
	PartyProxy   LogParty = "proxy"
	PartyServer  LogParty = "server"
	PartyNetwork LogParty = "network"
)

// LogPhase is how far the exchange had come; empty if the line does not tell.
type LogPhase string

// The phases.
const (
	PhaseConnect  LogPhase = "connect"
	PhaseTLS      LogPhase = "tls"
	PhaseRequest  LogPhase = "request"
	PhaseQueue    LogPhase = "queue"
	PhaseResponse LogPhase = "response"
	PhaseData     LogPhase = "data"
	PhaseIdle     LogPhase = "idle"
)

// LogReason is what happened, in stable words; empty for an ordinary line.
type LogReason string

// The reasons. "Closed" is an end that came too early, by FIN or by RST: only a
// line that names the RST says "reset". Upstream is the server behind a proxy.
const (
	ReasonReset           LogReason = "connection reset"
	ReasonClientReset     LogReason = "client reset"
	ReasonUpstreamReset   LogReason = "upstream reset"
	ReasonLocalReset      LogReason = "local reset"
	ReasonClientClosed    LogReason = "client closed"
	ReasonUpstreamClosed  LogReason = "upstream closed"
	ReasonBrokenPipe      LogReason = "broken pipe"
	ReasonTimeout         LogReason = "timeout"
	ReasonClientTimeout   LogReason = "client timeout"
	ReasonUpstreamTimeout LogReason = "upstream timeout"
	ReasonServerTimeout   LogReason = "server timeout"
	ReasonConnectTimeout  LogReason = "connect timeout"
	ReasonQueueTimeout    LogReason = "queue timeout"
	ReasonIdleTimeout     LogReason = "idle timeout"
	ReasonConnectRefused  LogReason = "connect refused"
	ReasonConnectFailed   LogReason = "connect failed"
	ReasonUnreachable     LogReason = "unreachable"
	ReasonNoLocalPort     LogReason = "no local port"
	ReasonNoServer        LogReason = "no server"
	ReasonServerDown      LogReason = "server down"
	ReasonBodyTooLarge    LogReason = "body too large"
	ReasonHeaderTooLarge  LogReason = "header too large"
	ReasonLimit           LogReason = "limit"
	ReasonReject          LogReason = "reject"
	ReasonProtocolError   LogReason = "protocol error"
	ReasonTLSError        LogReason = "tls error"
	ReasonPlaintext       LogReason = "plaintext on tls port"
	ReasonBadGateway      LogReason = "bad gateway"
	ReasonInternalError   LogReason = "internal error"
	ReasonKilled          LogReason = "killed"
	ReasonFaultInjected   LogReason = "fault injected"
	ReasonTableFull       LogReason = "table full"
	ReasonOOMKill         LogReason = "oom kill"
	ReasonLinkDown        LogReason = "link down"
	ReasonLinkUp          LogReason = "link up"
	ReasonSYNFlood        LogReason = "syn flood"
	ReasonTCPMemory       LogReason = "tcp memory"
	ReasonOrphans         LogReason = "too many orphans"
	ReasonTimeWait        LogReason = "too many time-wait"
	ReasonNeighbours      LogReason = "neighbour table full"
	ReasonTransmitStuck   LogReason = "transmit stuck"
	ReasonFirewall        LogReason = "firewall"
	ReasonProcessDied     LogReason = "process died"
	ReasonUnitStopped     LogReason = "unit stopped"
	ReasonUnitStarted     LogReason = "unit started"
)

// MaxLogText bounds the text of a LogLine, in bytes.
const MaxLogText = 1024

// LogLine is one line of a log near an incident, with what could be read of it. A
// log hints and never proves: parts of it are written by the client.
type LogLine struct {
	// Time is when the line was written, as near as it tells: the true time is in
	// [Time, Time+Precision]. Began is the start of the request or connection that
	// the line is about; zero if it does not tell.
	Time      time.Time     `json:"time"`
	Precision time.Duration `json:"precision_ns,omitempty"`
	Began     time.Time     `json:"began,omitzero"`
	Source    LogSource     `json:"source"`
	// Level is the writer's severity: "error", "crit", "warning", ...
	Level string `json:"level,omitempty"`
	Unit  string `json:"unit,omitempty"`
	PID   int    `json:"pid,omitempty"`
	File  string `json:"file,omitempty"`
	// Text is the line without its secrets and control characters, at most
	// MaxLogText bytes.
	Text   string    `json:"text"`
	Party  LogParty  `json:"party,omitempty"`
	Phase  LogPhase  `json:"phase,omitempty"`
	Reason LogReason `json:"reason,omitempty"`
	// Client, Upstream and Local (this host's end towards the upstream) have port
	// 0 where the line names only the address. Addresses are further ones, whose
	// role the line does not tell.
	Client    netip.AddrPort   `json:"client,omitzero"`
	Upstream  netip.AddrPort   `json:"upstream,omitzero"`
	Local     netip.AddrPort   `json:"local,omitzero"`
	Addresses []netip.AddrPort `json:"addresses,omitempty"`
	// Backend is the proxy's name of the server: "backend/server", a cluster.
	Backend string `json:"backend,omitempty"`
	// Connection is the writer's own number of the connection.
	Connection string `json:"connection,omitempty"`
	RequestID  string `json:"request_id,omitempty"`
	// TraceID is 32 lower-case hex digits (W3C Trace Context), or 16 of the older
	// B3 and Datadog ids; SpanID is 16.
	TraceID string `json:"trace_id,omitempty"`
	SpanID  string `json:"span_id,omitempty"`
	// Status is the HTTP status, 0 if none was sent or told.
	Status int `json:"status,omitempty"`
	// Flags are the proxy's own: HAProxy's termination state, Envoy's response flags.
	Flags string `json:"flags,omitempty"`
	// Timers are what the proxy measured, in the order of the line. A phase that
	// was not reached has none.
	Timers []LogTimer `json:"timers,omitempty"`
}

// LogTimer is one duration that a proxy measured, under the proxy's name for it.
type LogTimer struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took_ns"`
}

// Endpoints are all addresses that the line names.
func (l *LogLine) Endpoints() []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range []netip.AddrPort{l.Client, l.Upstream, l.Local} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return append(all, l.Addresses...)
}

// Names tells whether the line names an end of the flow, address and port. A
// server's end is the end of other flows too.
func (l *LogLine) Names(k FlowKey) bool {
	for _, a := range l.Endpoints() {
		if a.Port() != 0 && (a == k.A || a == k.B) {
			return true
		}
	}
	return false
}

// Around tells whether the line can have been written between from and to.
func (l *LogLine) Around(from, to time.Time) bool {
	return !l.Time.After(to) && !l.Time.Add(l.Precision).Before(from)
}
