package exporter

import (
	"strings"

	"tcpcoroner/evidence"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// resetBy translates an origin to tcpcoroner.reset.by. Where only the host is
// known and not whether its process or its kernel sent the RST, the value is
// that of the host ("local", "peer") and tcpcoroner.reset.layer is "unknown".
// Origins that are not in the table are "unknown"; none has no attribute.
var resetBy = map[evidence.Origin]string{
	evidence.OriginLocalProcess:   "local",
	evidence.OriginLocalHost:      "local",
	evidence.OriginLocalKernel:    "local_kernel",
	evidence.OriginLocalNetfilter: "firewall",
	evidence.OriginLocalOther:     "local",
	evidence.OriginPeerProcess:    "peer",
	evidence.OriginPeerKernel:     "peer_kernel",
	evidence.OriginPeerHost:       "peer",
	evidence.OriginMiddlebox:      "middlebox",
	evidence.OriginMiddleboxNear:  "middlebox",
	evidence.OriginMiddleboxFar:   "middlebox",
	evidence.OriginNAT:            "middlebox",
	evidence.OriginForwarded:      "unknown",
	evidence.OriginUnknown:        "unknown",
	evidence.OriginNone:           "",
}

// resetCause has the mechanisms whose tcpcoroner.reset.cause is not their own name
// with underscores.
var resetCause = map[evidence.Mechanism]string{
	evidence.MechanismRefused:         "no_listener",
	evidence.MechanismRefusedListener: "no_listener",
	evidence.MechanismUnread:          "close_with_unread_data",
	evidence.MechanismLinger:          "linger0",
	evidence.MechanismKeepalive:       "keepalive_timeout",
	evidence.MechanismQueueOverflow:   "backlog_overflow",
	evidence.MechanismConntrackFull:   "conntrack",
	evidence.MechanismInjected:        "injected",
}

func causeOf(m evidence.Mechanism) string {
	if cause, known := resetCause[m]; known {
		return cause
	}
	return strings.ReplaceAll(string(m), ".", "_")
}

// sender names an origin in a span's name.
var sender = map[evidence.Origin]string{
	evidence.OriginLocalProcess:   "by local process",
	evidence.OriginLocalKernel:    "by local kernel",
	evidence.OriginLocalNetfilter: "by local firewall",
	evidence.OriginLocalOther:     "by local host",
	evidence.OriginLocalHost:      "by local host",
	evidence.OriginPeerProcess:    "by peer process",
	evidence.OriginPeerKernel:     "by peer kernel",
	evidence.OriginPeerHost:       "by peer host",
	evidence.OriginMiddlebox:      "by middlebox",
	evidence.OriginMiddleboxNear:  "by middlebox",
	evidence.OriginMiddleboxFar:   "by middlebox",
	evidence.OriginNAT:            "by middlebox",
	evidence.OriginForwarded:      "in transit",
}

// refused tells whether the RST answered a SYN.
func refused(m evidence.Mechanism) bool {
	switch m {
	case evidence.MechanismRefused, evidence.MechanismRefusedListener, evidence.MechanismRefusedFilter, evidence.MechanismRefusedRateLimit:
		return true
	}
	return false
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
	if refused(c.Mechanism) {
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
	case refused(f.Verdict.Claim().Mechanism):
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
