package logs

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// envoyFlags are Envoy's response flags, short and long (documentation, "Access
// logging": RESPONSE_FLAGS), those that name the cause before those that name a
// consequence.
var envoyFlags = []struct {
	short, long string
	phrase
}{
	{"DC", "DownstreamConnectionTermination", phrase{"", evidence.PartyClient, "", evidence.ReasonClientClosed}},
	{"DR", "DownstreamRemoteReset", phrase{"", evidence.PartyClient, "", evidence.ReasonClientReset}},
	{"UF", "UpstreamConnectionFailure", phrase{"", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectFailed}},
	{"UC", "UpstreamConnectionTermination", phrase{"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamClosed}},
	{"UR", "UpstreamRemoteReset", phrase{"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamReset}},
	{"UT", "UpstreamRequestTimeout", phrase{"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout}},
	{"LR", "LocalReset", phrase{"", evidence.PartyProxy, evidence.PhaseResponse, evidence.ReasonLocalReset}},
	{"UMSDR", "UpstreamMaxStreamDurationReached", phrase{"", evidence.PartyProxy, evidence.PhaseData, evidence.ReasonUpstreamTimeout}},
	{"SI", "StreamIdleTimeout", phrase{"", evidence.PartyProxy, evidence.PhaseIdle, evidence.ReasonIdleTimeout}},
	{"DT", "DurationTimeout", phrase{"", evidence.PartyProxy, evidence.PhaseData, evidence.ReasonLimit}},
	{"DPE", "DownstreamProtocolError", phrase{"", evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonProtocolError}},
	{"UPE", "UpstreamProtocolError", phrase{"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonProtocolError}},
	{"UH", "NoHealthyUpstream", phrase{"", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer}},
	{"NC", "NoClusterFound", phrase{"", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer}},
	{"DF", "DnsResolutionFailed", phrase{"", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer}},
	{"LH", "FailedLocalHealthCheck", phrase{"", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonServerDown}},
	{"NR", "NoRouteFound", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject}},
	{"UAEX", "UnauthorizedExternalService", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject}},
	{"RLSE", "RateLimitServiceError", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject}},
	{"IH", "InvalidEnvoyRequestHeaders", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject}},
	{"NFCF", "NoFilterConfigFound", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject}},
	{"RL", "RateLimited", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit}},
	{"UO", "UpstreamOverflow", phrase{"", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonLimit}},
	{"OM", "OverloadManagerTerminated", phrase{"", evidence.PartyProxy, "", evidence.ReasonLimit}},
	{"DO", "DropOverload", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit}},
	{"UDO", "UnconditionalDropOverload", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit}},
	{"FI", "FaultInjected", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonFaultInjected}},
	{"DI", "DelayInjected", phrase{"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonFaultInjected}},
	{"URX", "UpstreamRetryLimitExceeded", phrase{"", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectFailed}},
}

// envoyDetails refine a failed connection by Envoy's own words in
// UPSTREAM_TRANSPORT_FAILURE_REASON, RESPONSE_CODE_DETAILS and
// CONNECTION_TERMINATION_DETAILS, in lower case with spaces for underscores.
var envoyDetails = []phrase{
	{"connect error: 111", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectRefused},
	{"connection refused", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectRefused},
	{"connect error: 113", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"tls error", evidence.PartyServer, evidence.PhaseTLS, evidence.ReasonTLSError},
	{"tls handshake", evidence.PartyServer, evidence.PhaseTLS, evidence.ReasonTLSError},
	{"connection timeout", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectTimeout},
	{"connect error: 110", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonConnectTimeout},
	{"remote reset", evidence.PartyServer, "", evidence.ReasonUpstreamReset},
	{"reset by peer", evidence.PartyServer, "", evidence.ReasonUpstreamReset},
}

// envoyFields are one access-log entry's values by Envoy's own names of them, in
// lower case; a value that is not set is "".
type envoyFields map[string]string

// envoyDefault is the order of values in the default format, envoyMesh in the one
// that Istio configures.
var (
	envoyDefault = []string{
		"request", "response_code", "response_flags", "bytes_received", "bytes_sent", "duration",
		"upstream_service_time", "x_forwarded_for", "user_agent", "x_request_id", "authority", "upstream_host",
	}
	envoyMesh = []string{
		"request", "response_code", "response_flags", "response_code_details", "connection_termination_details",
		"upstream_transport_failure_reason", "bytes_received", "bytes_sent", "duration", "upstream_service_time",
		"x_forwarded_for", "user_agent", "x_request_id", "authority", "upstream_host", "upstream_cluster",
		"upstream_local_address", "downstream_local_address", "downstream_remote_address", "requested_server_name",
		"route_name",
	}
)

// parseEnvoy reads a line of Envoy's access log in its default format or Istio's.
func parseEnvoy(text string, p place) (l evidence.LogLine, ok bool) {
	stamp, rest, ok := strings.Cut(text, "] \"")
	if !ok || !strings.HasPrefix(stamp, "[") {
		return l, false
	}
	began, precision, _, ok := p.leadingTime(stamp)
	words := splitQuoted(`"` + rest)
	if !ok || len(words) < len(envoyDefault) || !isEnvoyFlags(words[2]) {
		return l, false
	}
	names := envoyDefault
	if _, err := strconv.ParseUint(words[3], 10, 64); err != nil {
		names = envoyMesh
	}
	f := envoyFields{}
	for i, w := range words[:min(len(words), len(names))] {
		if w != "-" {
			f[names[i]] = w
		}
	}
	return f.line(began, precision), true
}

// line makes a line of the values.
func (f envoyFields) line(began time.Time, precision time.Duration) evidence.LogLine {
	l := evidence.LogLine{
		Time: began, Precision: precision, Began: began, Source: evidence.LogEnvoyAccess,
		Upstream: f.address("upstream_remote_address", "upstream_host"),
		Local:    f.address("upstream_local_address"),
		Client:   f.address("downstream_direct_remote_address", "downstream_remote_address"),
		Backend:  f.any("upstream_cluster", "upstream_cluster_raw"), Connection: f["connection_id"],
		RequestID: f.any("x_request_id", "request_id"), Flags: f.any("response_flags", "response_flags_long"),
	}
	if !l.Client.IsValid() { // what the client says of itself, but better than nothing
		who, _, _ := strings.Cut(f["x_forwarded_for"], ",")
		l.Client = parseEndpoint(who)
	}
	if e := f.address("downstream_local_address"); e.IsValid() {
		l.Addresses = []netip.AddrPort{e}
	}
	l.Status = parseStatus(f["response_code"])
	if ms, err := strconv.ParseInt(f["duration"], 10, 64); err == nil && ms >= 0 && ms < maxTimer.Milliseconds() {
		took := time.Duration(ms) * time.Millisecond
		l.Time, l.Timers = began.Add(took), []evidence.LogTimer{{Name: "duration", Took: took}}
		l.Precision = max(l.Precision, time.Millisecond)
	}
	f.judge(&l)
	return l
}

// judge reads the flags, then what tells more: the details, and which side's socket
// saw the reset (UPSTREAM_DETECTED_CLOSE_TYPE).
func (f envoyFields) judge(l *evidence.LogLine) {
	set := strings.Split(l.Flags, ",")
	for _, e := range envoyFlags {
		if slices.Contains(set, e.short) || slices.Contains(set, e.long) {
			l.Party, l.Phase, l.Reason = e.party, e.phase, e.reason
			break
		}
	}
	details := f["upstream_transport_failure_reason"] + " " + f["response_code_details"] + " " + f["connection_termination_details"]
	if d, ok := first(envoyDetails, strings.ReplaceAll(strings.ToLower(details), "_", " ")); ok && l.Party == evidence.PartyServer {
		l.Party, l.Reason = d.party, d.reason
		if d.phase != "" {
			l.Phase = d.phase
		}
	}
	switch {
	case f["upstream_detected_close_type"] == "RemoteReset":
		l.Party, l.Reason = evidence.PartyServer, evidence.ReasonUpstreamReset
	case f["downstream_detected_close_type"] == "RemoteReset":
		l.Party, l.Reason = evidence.PartyClient, evidence.ReasonClientReset
	}
}

// any is the first value that is set.
func (f envoyFields) any(names ...string) string {
	for _, n := range names {
		if f[n] != "" {
			return f[n]
		}
	}
	return ""
}

// address is the first value that is one.
func (f envoyFields) address(names ...string) netip.AddrPort {
	for _, n := range names {
		if e := parseEndpoint(f[n]); e.IsValid() {
			return e
		}
	}
	return netip.AddrPort{}
}

// isEnvoyFlags tells whether a word can be response flags: "-" or "UF,URX".
func isEnvoyFlags(s string) bool {
	if s == "" {
		return false
	}
	return s == "-" || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz,") == ""
}

// splitQuoted splits at spaces outside of quotes, and takes the quotes off.
func splitQuoted(text string) []string {
	var words []string
	for text = strings.TrimLeft(text, " "); text != ""; text = strings.TrimLeft(text, " ") {
		var word string
		if text[0] == '"' {
			word, text, _ = strings.Cut(text[1:], `"`)
		} else {
			word, text, _ = strings.Cut(text, " ")
		}
		words = append(words, word)
	}
	return words
}
