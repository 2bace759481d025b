package verdict

import (
	"fmt"
	"strings"

	"tcpcoroner/evidence"
)

// This file knows which setting of a proxy decided, by what the proxy wrote into its
// log. The proxies' files are not read: what a setting is shows in what it did.

// setting is one that a log line points to.
type setting struct {
	reason evidence.LogReason
	// phase and text narrow the line down; empty is any.
	phase evidence.LogPhase
	text  string
	knob  string
	// effect is what else raising or lifting it does.
	effect string
	// timer tells that it is a time, which the closing shows.
	timer bool
}

// The side effects that settings share.
const (
	holdsLonger = "slow exchanges hold connections and memory longer"
	waitsLonger = "requests wait longer for a server that is down"
	letsMore    = "the host serves more at once, and may be overloaded"
	letsLarger  = "large requests take memory, disk and time"
	letsAll     = "what was kept out gets in"
)

// settings are tried in order.
var settings = map[evidence.LogSource][]setting{
	// Configuration manual of HAProxy, 4.2 and 8.5.
	evidence.LogHAProxy: {
		{evidence.ReasonClientTimeout, evidence.PhaseRequest, "", "timeout http-request", holdsLonger, true},
		{evidence.ReasonClientTimeout, "", "", "timeout client", holdsLonger, true},
		{evidence.ReasonServerTimeout, "", "", "timeout server", holdsLonger, true},
		{evidence.ReasonConnectTimeout, "", "", "timeout connect", waitsLonger, true},
		{evidence.ReasonQueueTimeout, "", "", "timeout queue", waitsLonger, true},
		{evidence.ReasonLimit, "", "", "maxconn", letsMore, false},
		{evidence.ReasonReject, "", "", "http-request deny, tcp-request reject", letsAll, false},
		{evidence.ReasonServerDown, "", "", "on-marked-down shutdown-sessions", "sessions stay with a server that fails its checks", false},
	},
	// nginx.org/en/docs: ngx_http_core_module, ngx_http_proxy_module.
	evidence.LogNginxError: {
		{evidence.ReasonConnectTimeout, "", "", "proxy_connect_timeout", waitsLonger, true},
		{evidence.ReasonUpstreamTimeout, evidence.PhaseRequest, "", "proxy_send_timeout", holdsLonger, true},
		{evidence.ReasonUpstreamTimeout, "", "", "proxy_read_timeout", holdsLonger, true},
		{evidence.ReasonClientTimeout, evidence.PhaseRequest, "headers", "client_header_timeout", holdsLonger, true},
		{evidence.ReasonClientTimeout, evidence.PhaseRequest, "", "client_body_timeout", holdsLonger, true},
		{evidence.ReasonClientTimeout, evidence.PhaseIdle, "keepalive", "keepalive_timeout", holdsLonger, true},
		{evidence.ReasonClientTimeout, evidence.PhaseIdle, "", "client_header_timeout", holdsLonger, true},
		{evidence.ReasonClientTimeout, "", "", "send_timeout", holdsLonger, true},
		{evidence.ReasonBodyTooLarge, "", "", "client_max_body_size", letsLarger, false},
		{evidence.ReasonHeaderTooLarge, evidence.PhaseResponse, "", "proxy_buffer_size", letsLarger, false},
		{evidence.ReasonHeaderTooLarge, "", "", "large_client_header_buffers", letsLarger, false},
		{evidence.ReasonLimit, "", "limiting requests", "limit_req", letsMore, false},
		{evidence.ReasonLimit, "", "limiting connections", "limit_conn", letsMore, false},
		{evidence.ReasonLimit, "", "worker_connections", "worker_connections", letsMore, false},
		{evidence.ReasonReject, evidence.PhaseTLS, "", "ssl_reject_handshake", letsAll, false},
		{evidence.ReasonReject, "", "", "allow, deny", letsAll, false},
	},
	// Envoy's documentation: "How do I configure timeouts?", circuit breaking.
	evidence.LogEnvoyAccess: {
		{evidence.ReasonUpstreamTimeout, evidence.PhaseData, "", "max_stream_duration", holdsLonger, true},
		{evidence.ReasonUpstreamTimeout, "", "", "timeout of the route", holdsLonger, true},
		{evidence.ReasonIdleTimeout, "", "", "stream_idle_timeout", holdsLonger, true},
		{evidence.ReasonConnectTimeout, "", "", "connect_timeout of the cluster", waitsLonger, true},
		{evidence.ReasonLimit, evidence.PhaseConnect, "", "circuit_breakers of the cluster", letsMore, false},
		{evidence.ReasonLimit, evidence.PhaseRequest, "", "rate_limits", letsMore, false},
		{evidence.ReasonLimit, evidence.PhaseData, "", "max_connection_duration", holdsLonger, true},
	},
}

func settingOf(l *evidence.LogLine) (setting, bool) {
	for _, s := range settings[l.Source] {
		if s.reason == l.Reason && (s.phase == "" || s.phase == l.Phase) && strings.Contains(l.Text, s.text) {
			return s, true
		}
	}
	return setting{}, false
}

// settingAdvice points to the setting that made the side which wrote the line close.
func (s *story) settingAdvice() (a evidence.Advice, ok bool) {
	if s.logged == nil {
		return a, false
	}
	set, ok := settingOf(s.logged)
	if !ok {
		return a, false
	}
	program, _, _ := strings.Cut(string(s.logged.Source), ".")
	a = evidence.Advice{Knob: set.knob, SideEffect: set.effect, Text: fmt.Sprintf("%s decided by this limit: compare it with what it refused", program)}
	if set.timer {
		a.Text = fmt.Sprintf("%s decided by this timer: find out why the other side was slow, then compare the two", program)
		a.Value = s.acted
	}
	return a, true
}
