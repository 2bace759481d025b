package logs

import (
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// phrase is what a piece of text means. An empty party or phase is told by the
// rest of the line, if at all.
type phrase struct {
	text   string
	party  evidence.LogParty
	phase  evidence.LogPhase
	reason evidence.LogReason
}

// nginxPhrases are nginx's own sentences (src/http, src/stream, src/event), the
// most telling first. They are found in the message in lower case.
var nginxPhrases = []phrase{
	{"client prematurely closed", evidence.PartyClient, "", evidence.ReasonClientClosed},
	{"upstream prematurely closed", evidence.PartyServer, "", evidence.ReasonUpstreamClosed},
	{"upstream timed out", evidence.PartyServer, "", evidence.ReasonUpstreamTimeout},
	{"client timed out", evidence.PartyClient, "", evidence.ReasonClientTimeout},
	{"no live upstreams", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer},
	{"client intended to send too large", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge},
	{"client sent too large request", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge},
	{"client sent too long", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonHeaderTooLarge},
	{"upstream sent too big header", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonHeaderTooLarge},
	{"plain http request to https port", evidence.PartyClient, evidence.PhaseTLS, evidence.ReasonPlaintext},
	{"upstream sent", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonProtocolError},
	{"client sent", evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonProtocolError},
	{"limiting requests", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit},
	{"limiting connections", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit},
	{"worker_connections are not enough", evidence.PartyProxy, "", evidence.ReasonLimit},
	{"access forbidden by rule", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject},
	{"handshake rejected", evidence.PartyProxy, evidence.PhaseTLS, evidence.ReasonReject}, // ssl_reject_handshake
	{"peer closed connection in ssl handshake", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	{"ssl_do_handshake() failed", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	{"certificate verify", "", evidence.PhaseTLS, evidence.ReasonTLSError},
	// What the kernel answered to a system call (errno(3)).
	{"(111: ", "", evidence.PhaseConnect, evidence.ReasonConnectRefused},
	{"(104: ", "", "", evidence.ReasonReset},
	{"(32: ", "", "", evidence.ReasonBrokenPipe},
	{"(110: ", "", "", evidence.ReasonTimeout},
	{"(113: ", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"(101: ", evidence.PartyNetwork, evidence.PhaseConnect, evidence.ReasonUnreachable},
	{"(99: ", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoLocalPort},
	{"(24: ", evidence.PartyProxy, "", evidence.ReasonLimit},
	{"(23: ", evidence.PartyProxy, "", evidence.ReasonLimit},
}

// nginxActions tell side and phase from what nginx says it was doing: the words
// behind "while" (ngx_log_t.action).
var nginxActions = []phrase{
	{"ssl handshaking to upstream", evidence.PartyServer, evidence.PhaseTLS, ""},
	{"ssl handshaking", evidence.PartyClient, evidence.PhaseTLS, ""},
	{"connecting to upstream", evidence.PartyServer, evidence.PhaseConnect, ""},
	{"sending request to upstream", evidence.PartyServer, evidence.PhaseRequest, ""},
	{"reading response header from upstream", evidence.PartyServer, evidence.PhaseResponse, ""},
	{"upstream", evidence.PartyServer, evidence.PhaseData, ""},
	{"waiting for request", evidence.PartyClient, evidence.PhaseIdle, ""},
	{"keepalive", evidence.PartyClient, evidence.PhaseIdle, ""},
	{"reading client request", evidence.PartyClient, evidence.PhaseRequest, ""},
	{"client", evidence.PartyClient, evidence.PhaseData, ""},
	{"http/2 connection", evidence.PartyClient, "", ""},
	{"proxying", "", evidence.PhaseData, ""},
}

// parseNginxError reads a line of nginx's error log (ngx_log_error_core,
// ngx_http_log_error): "2026/11/23 02:13:00 [error] 7#7: *1 message while action,
// client: 192.0.2.1, server: name, request: "...", upstream: "http://192.0.2.2:80/"".
func parseNginxError(text string, p place) (l evidence.LogLine, ok bool) {
	const layout = "2006/01/02 15:04:05"
	if len(text) < len(layout)+2 || text[4] != '/' || text[len(layout):len(layout)+2] != " [" {
		return l, false
	}
	at, err := time.ParseInLocation(layout, text[:len(layout)], p.loc)
	level, rest, leveled := strings.Cut(text[len(layout)+2:], "] ")
	ids, rest, written := strings.Cut(rest, ": ")
	pid, _, threaded := strings.Cut(ids, "#")
	if err != nil || !leveled || !written || !threaded {
		return l, false
	}
	l = evidence.LogLine{Time: at, Precision: time.Second, Source: evidence.LogNginxError, Level: level}
	l.PID, _ = strconv.Atoi(pid)
	if strings.HasPrefix(rest, "*") {
		l.Connection, rest, _ = strings.Cut(rest[1:], " ")
	}
	message, fields, _ := strings.Cut(rest, ", client: ")
	readNginxFields(fields, &l)
	judgeNginx(message, &l)
	return l, true
}

// readNginxFields reads what follows ", client: ". The request and the referrer are
// the client's words and may pretend to be fields: two upstreams are none.
func readNginxFields(fields string, l *evidence.LogLine) {
	client, _, _ := strings.Cut(fields, ", ")
	l.Client = parseEndpoint(client)
	if _, server, ok := strings.Cut(fields, ", server: "); ok {
		server, _, _ = strings.Cut(server, ",")
		if e := parseEndpoint(server); e.Port() != 0 && !e.Addr().IsUnspecified() {
			l.Local = e
		}
	}
	const key = `, upstream: "`
	if strings.Count(fields, key) == 1 {
		_, upstream, _ := strings.Cut(fields, key)
		upstream, _, _ = strings.Cut(upstream, `"`)
		l.Upstream = parseEndpoint(upstream)
	}
}

func judgeNginx(message string, l *evidence.LogLine) {
	low := strings.ToLower(message)
	what, action := low, low
	if i := strings.LastIndex(low, " while "); i >= 0 {
		what, action = low[:i], low[i:]
	}
	said, ok := first(nginxPhrases, what)
	if !ok {
		return
	}
	doing, _ := first(nginxActions, action)
	l.Party, l.Phase, l.Reason = said.party, said.phase, said.reason
	if l.Party == "" {
		l.Party = doing.party
	}
	if l.Phase == "" {
		l.Phase = doing.phase
	}
	if l.Reason == evidence.ReasonUpstreamTimeout && l.Phase == evidence.PhaseConnect {
		l.Reason = evidence.ReasonConnectTimeout
	}
	l.Reason = sided(l.Reason, l.Party)
}

// first finds the first phrase that text contains.
func first(table []phrase, text string) (phrase, bool) {
	for _, p := range table {
		if strings.Contains(text, p.text) {
			return p, true
		}
	}
	return phrase{}, false
}

// sided makes a reason of a connection one of the client's or the upstream's.
func sided(r evidence.LogReason, side evidence.LogParty) evidence.LogReason {
	switch {
	case r == evidence.ReasonReset && side == evidence.PartyClient:
		return evidence.ReasonClientReset
	case r == evidence.ReasonReset && side == evidence.PartyServer:
		return evidence.ReasonUpstreamReset
	case r == evidence.ReasonTimeout && side == evidence.PartyClient:
		return evidence.ReasonClientTimeout
	case r == evidence.ReasonTimeout && side == evidence.PartyServer:
		return evidence.ReasonUpstreamTimeout
	}
	return r
}

// statuses are what the HTTP status in an nginx access log means; 444, 494-497 and
// 499 are its own (ngx_http_request.h). A status that any server may answer for
// any reason is not among them.
var statuses = map[int]phrase{
	400: {"", evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonProtocolError},
	408: {"", evidence.PartyClient, evidence.PhaseRequest, evidence.ReasonClientTimeout},
	413: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonBodyTooLarge},
	414: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonHeaderTooLarge},
	429: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonLimit},
	431: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonHeaderTooLarge},
	444: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonReject},
	494: {"", evidence.PartyProxy, evidence.PhaseRequest, evidence.ReasonHeaderTooLarge},
	495: {"", evidence.PartyClient, evidence.PhaseTLS, evidence.ReasonTLSError},
	496: {"", evidence.PartyClient, evidence.PhaseTLS, evidence.ReasonTLSError},
	497: {"", evidence.PartyClient, evidence.PhaseTLS, evidence.ReasonPlaintext},
	499: {"", evidence.PartyClient, evidence.PhaseResponse, evidence.ReasonClientClosed},
	502: {"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonBadGateway},
	504: {"", evidence.PartyServer, evidence.PhaseResponse, evidence.ReasonUpstreamTimeout},
}

// parseStatus reads an HTTP status; 0 is none, as proxies write it with 0 or -1.
func parseStatus(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 100 || n > 999 {
		return 0
	}
	return n
}

func judgeStatus(l *evidence.LogLine) {
	said := statuses[l.Status]
	l.Party, l.Phase, l.Reason = said.party, said.phase, said.reason
}

// parseCombined reads nginx's "combined" access log: 192.0.2.1 - user
// [23/Nov/2026:02:13:00 +0000] "GET / HTTP/1.1" 499 0 "referer" "agent".
func parseCombined(text string, _ place) (l evidence.LogLine, ok bool) {
	who, rest, bracketed := strings.Cut(text, " [")
	stamp, rest, dated := strings.Cut(rest, "] \"")
	if !bracketed || !dated {
		return l, false
	}
	words := strings.Fields(who)
	if len(words) < 3 || words[1] != "-" {
		return l, false
	}
	at, err := time.Parse("02/Jan/2006:15:04:05 -0700", stamp)
	if err != nil {
		return l, false
	}
	_, rest, quoted := strings.Cut(rest, "\" ") // nginx writes \x22 for a quote in the request
	code, _, _ := strings.Cut(rest, " ")
	status := parseStatus(code)
	if !quoted || status == 0 {
		return l, false
	}
	l = evidence.LogLine{Time: at, Precision: time.Second, Source: evidence.LogNginxAccess, Status: status}
	l.Client = parseEndpoint(words[0])
	judgeStatus(&l)
	return l, true
}
