package logs

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// haproxyDate is %t and %tr: local time without zone.
const haproxyDate = "02/Jan/2006:15:04:05.000"

// The names of HAProxy's timers in its TCP and HTTP formats (configuration manual,
// 8.2.2 and 8.2.3).
var (
	haproxyTCPTimers  = []string{"Tw", "Tc", "Tt"}
	haproxyHTTPTimers = []string{"TR", "Tw", "Tc", "Tr", "Ta"}
)

// haproxyEnds is the first letter of the termination state: who ended the session
// (configuration manual, 8.5).
var haproxyEnds = map[byte]phrase{
	'C': {"aborted by the client", evidence.PartyClient, "", evidence.ReasonClientClosed},
	'S': {"aborted or refused by the server", evidence.PartyServer, "", evidence.ReasonUpstreamClosed},
	'P': {"aborted by the proxy: limit, rule or check", evidence.PartyProxy, "", evidence.ReasonReject},
	'L': {"handled by the proxy itself, as a redirect is", "", "", ""},
	'R': {"a resource of the proxy is exhausted", evidence.PartyProxy, "", evidence.ReasonLimit},
	'I': {"internal error", evidence.PartyProxy, "", evidence.ReasonInternalError},
	'D': {"killed because the server went down", evidence.PartyServer, "", evidence.ReasonServerDown},
	'U': {"killed because an active server came up", evidence.PartyProxy, "", evidence.ReasonKilled},
	'K': {"killed by an operator", evidence.PartyProxy, "", evidence.ReasonKilled},
	'c': {"timeout of the client", evidence.PartyClient, "", evidence.ReasonClientTimeout},
	's': {"timeout of the server", evidence.PartyServer, "", evidence.ReasonServerTimeout},
}

// haproxyPhases is the second letter: what the session was at.
var haproxyPhases = map[byte]evidence.LogPhase{
	'R': evidence.PhaseRequest,
	'Q': evidence.PhaseQueue,
	'C': evidence.PhaseConnect,
	'H': evidence.PhaseResponse,
	'D': evidence.PhaseData,
	'L': evidence.PhaseData,    // the last data to the client
	'T': evidence.PhaseRequest, // tarpit
}

// haproxyPairs are the two letters that together say more than each.
var haproxyPairs = map[string]evidence.LogReason{
	"SC": evidence.ReasonConnectRefused,
	"sC": evidence.ReasonConnectTimeout,
	"sQ": evidence.ReasonQueueTimeout,
	"SD": evidence.ReasonUpstreamReset,
	"PC": evidence.ReasonLimit,
	"PH": evidence.ReasonProtocolError,
	"PD": evidence.ReasonProtocolError,
}

// parseHAProxy reads HAProxy's TCP, HTTP and HTTPS logs, its errors of incoming
// connections, the old "Connect from", and the news of its servers.
func parseHAProxy(text string, p place) (l evidence.LogLine, ok bool) {
	if rest, found := strings.CutPrefix(text, "Connect from "); found {
		return parseHAProxyConnect(rest)
	}
	who, rest, _ := strings.Cut(text, " ")
	client, ok := parseUnbracketed(who)
	if !ok && !strings.HasPrefix(who, "unix:") {
		return parseHAProxyNews(text)
	}
	stamp, rest, dated := strings.Cut(rest, "] ")
	began, err := time.ParseInLocation("["+haproxyDate, stamp, p.loc)
	if !dated || err != nil {
		return l, false
	}
	l = evidence.LogLine{
		Time: began, Precision: time.Millisecond, Began: began, Source: evidence.LogHAProxy, Client: client,
	}
	f := strings.Fields(rest)
	switch {
	case len(f) >= 8 && strings.Count(f[2], "/") == 4 && isState(f[7], 4):
		l.Status = parseStatus(f[3])
		judgeHAProxy(f[1], f[7], &l)
		readTimers(haproxyHTTPTimers, f[2], &l)
	case len(f) >= 5 && strings.Count(f[2], "/") == 2 && isState(f[4], 2):
		judgeHAProxy(f[1], f[4], &l)
		readTimers(haproxyTCPTimers, f[2], &l)
	case len(f) >= 2 && strings.HasSuffix(f[0], ":"):
		judgeHAProxyError(strings.TrimPrefix(rest, f[0]), &l)
	default:
		return evidence.LogLine{}, false
	}
	return l, true
}

// isState tells whether a word is a termination state of n letters.
func isState(s string, n int) bool {
	if len(s) != n {
		return false
	}
	_, ends := haproxyEnds[s[0]]
	_, phase := haproxyPhases[s[1]]
	return (ends || s[0] == '-') && (phase || s[1] == '-')
}

// judgeHAProxy reads server and termination state. A server that was never chosen
// refused nothing.
func judgeHAProxy(server, state string, l *evidence.LogLine) {
	l.Backend, l.Flags = server, state
	end := haproxyEnds[state[0]]
	l.Party, l.Reason = end.party, end.reason
	if end.reason != "" {
		l.Phase = haproxyPhases[state[1]]
	}
	if r, ok := haproxyPairs[state[:2]]; ok {
		l.Reason = r
	}
	if state[:2] == "SC" && strings.HasSuffix(server, "/<NOSRV>") {
		l.Party, l.Reason = evidence.PartyProxy, evidence.ReasonNoServer
	}
}

// readTimers reads "10/0/30/69/109", milliseconds, -1 for what was not reached. The
// last is the whole: with it the line's time is the end. "+" in front says that
// the log was written before the end (option logasap).
func readTimers(names []string, text string, l *evidence.LogLine) {
	words := strings.Split(text, "/")
	for i, w := range words[:min(len(words), len(names))] {
		ms, err := strconv.ParseInt(strings.TrimPrefix(w, "+"), 10, 64)
		if err != nil || ms < 0 || ms > maxTimer.Milliseconds() {
			continue
		}
		took := time.Duration(ms) * time.Millisecond
		l.Timers = append(l.Timers, evidence.LogTimer{Name: names[i], Took: took})
		if i == len(names)-1 {
			l.Time = l.Began.Add(took)
		}
	}
}

// maxTimer is the longest a proxy's timer is believed to measure.
const maxTimer = 10 * 365 * 24 * time.Hour

// judgeHAProxyError reads the message of a failed incoming connection (8.2.5).
func judgeHAProxyError(message string, l *evidence.LogLine) {
	l.Party, l.Phase, l.Reason = evidence.PartyClient, evidence.PhaseConnect, evidence.ReasonClientClosed
	low := strings.ToLower(message)
	switch {
	case strings.Contains(low, "ssl"):
		l.Phase, l.Reason = evidence.PhaseTLS, evidence.ReasonTLSError
	case strings.Contains(low, "timeout"):
		l.Reason = evidence.ReasonClientTimeout
	case strings.Contains(low, "proxy protocol"):
		l.Reason = evidence.ReasonProtocolError
	}
}

// parseHAProxyConnect reads "192.0.2.1:33312 to 192.0.2.2:8012 (www/HTTP)" (8.2.1).
func parseHAProxyConnect(text string) (l evidence.LogLine, ok bool) {
	f := strings.Fields(text)
	if len(f) != 4 || f[1] != "to" {
		return l, false
	}
	client, ok := parseUnbracketed(f[0])
	local, ok2 := parseUnbracketed(f[2])
	return evidence.LogLine{
		Source: evidence.LogHAProxy, Client: client, Addresses: []netip.AddrPort{local},
		Backend: strings.Trim(f[3], "()"),
	}, ok && ok2
}

// haproxyNews are the messages about servers (src/server.c, src/check.c).
var haproxyNews = []phrase{
	{"has no server available", evidence.PartyProxy, evidence.PhaseConnect, evidence.ReasonNoServer},
	{"is DOWN", evidence.PartyServer, evidence.PhaseConnect, evidence.ReasonServerDown},
	{"reached process FD limit", evidence.PartyProxy, "", evidence.ReasonLimit},
	{"reached system FD limit", evidence.PartyProxy, "", evidence.ReasonLimit},
	{"reached system memory limit", evidence.PartyProxy, "", evidence.ReasonLimit},
}

func parseHAProxyNews(text string) (l evidence.LogLine, ok bool) {
	for _, lead := range []string{"Server ", "Backup Server ", "backend ", "proxy ", "Proxy "} {
		if !strings.HasPrefix(text, lead) {
			continue
		}
		n, ok := first(haproxyNews, text)
		f := strings.Fields(text[len(lead):])
		if !ok || len(f) == 0 {
			return l, false
		}
		return evidence.LogLine{
			Source: evidence.LogHAProxy, Party: n.party, Phase: n.phase, Reason: n.reason,
			Backend: strings.Trim(f[0], "'"),
		}, true
	}
	return l, false
}
