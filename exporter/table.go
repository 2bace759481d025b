package exporter

import (
	"tcpcoroner/evidence"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// resetBy translates an origin to tcpcoroner.reset.by. Where only the host is
// known and not whether its process or its kernel sent the RST, the value is
// that of the host ("local", "peer") and tcpcoroner.reset.layer is "unknown".
// Origins that are not in the table are "unknown"; none has no attribute.
var resetBy = map[evidence.Origin]string{
	evidence.OriginLocalProcess: "local",
	evidence.OriginLocalHost:    "local",
	evidence.OriginLocalKernel:  "local_kernel",
	evidence.OriginPeerProcess:  "peer",
	evidence.OriginPeerHost:     "peer",
	evidence.OriginForwarded:    "unknown",
	evidence.OriginUnknown:      "unknown",
	evidence.OriginNone:         "",
}

// resetCause translates a mechanism to tcpcoroner.reset.cause. active_abort is
// close() with unread data or with SO_LINGER 0: which one is undecided.
var resetCause = map[evidence.Mechanism]string{
	evidence.MechanismRefused:       "no_listener",
	evidence.MechanismNoSocket:      "no_socket",
	evidence.MechanismActiveAbort:   "active_abort",
	evidence.MechanismAfterFIN:      "after_fin",
	evidence.MechanismQueueOverflow: "backlog_overflow",
	evidence.MechanismConntrackFull: "conntrack",
	evidence.MechanismUnknown:       "unknown",
}

// sender names an origin in a span's name.
var sender = map[evidence.Origin]string{
	evidence.OriginLocalProcess: "by local process",
	evidence.OriginLocalKernel:  "by local kernel",
	evidence.OriginLocalHost:    "by local host",
	evidence.OriginPeerProcess:  "by peer process",
	evidence.OriginPeerHost:     "by peer host",
	evidence.OriginForwarded:    "in transit",
}

// spanName is from a closed set: backends group by it.
func spanName(f *evidence.Flow) string {
	c := f.Verdict.Claim()
	switch {
	case c.Mechanism == evidence.MechanismQueueOverflow:
		return "tcp accept queue overflow"
	case c.Mechanism == evidence.MechanismConntrackFull:
		return "tcp dropped by full conntrack table"
	case f.Reset == nil:
		return "tcp without reset"
	}
	verb := "tcp reset "
	if c.Mechanism == evidence.MechanismRefused {
		verb = "tcp refused "
	}
	if by, ok := sender[c.Origin]; ok {
		return verb + by
	}
	return verb + "by unknown"
}

// errorType is in the vocabulary of .NET's sockets, the only one that semantic
// conventions have for TCP; empty if nothing failed that has a name there.
func errorType(f *evidence.Flow) string {
	switch {
	case f.Reset == nil:
		return ""
	case f.Verdict.Claim().Mechanism == evidence.MechanismRefused:
		return "connection_refused"
	}
	return "connection_reset"
}

// verdictName is the verdict in one word: origin/mechanism, as docs list them.
func verdictName(c evidence.Claim) string {
	if c.Origin == evidence.OriginUnknown && c.Mechanism == evidence.MechanismUnknown {
		return "unknown"
	}
	return string(c.Origin) + "/" + string(c.Mechanism)
}

// schemaURL names the version of the semantic conventions of all attributes
// that do not begin with tcpcoroner.
const schemaURL = semconv.SchemaURL
