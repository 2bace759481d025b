package logs

import (
	"cmp"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// place is what a line does not say itself.
type place struct {
	// loc is the zone of times without one; now gives syslog's times their year.
	loc *time.Location
	now time.Time
}

// parse reads any log line: the proxies' formats, with or without what syslog or a
// container runtime put in front, or else an application's. The time is zero if
// the line tells none. The result is ready to keep.
func (p place) parse(raw string) evidence.LogLine {
	l := p.read(raw)
	finish(raw, &l)
	return l
}

// read is parse without what costs most: the ids and the text.
func (p place) read(raw string) evidence.LogLine {
	if len(raw) > maxRaw {
		raw = raw[:maxRaw]
	}
	l, ok := p.readFormats(raw)
	if ok {
		return l
	}
	head, body := p.unwrap(raw)
	if l, ok = p.readFormats(body); !ok {
		l = parseApplication(raw)
	}
	if l.Time.IsZero() {
		l.Time, l.Precision = head.time, head.precision
	}
	l.PID = cmp.Or(l.PID, head.pid)
	return l
}

// finish gives a line its ids and its text.
func finish(raw string, l *evidence.LogLine) {
	if len(raw) > maxRaw {
		raw = raw[:maxRaw]
	}
	findIDs(raw, l)
	for _, field := range []*string{&l.RequestID, &l.Connection, &l.Backend, &l.Flags, &l.Level} {
		*field = shorten(printable(*field), maxField)
	}
	l.Text = tidy(raw)
}

// maxField bounds what a line says in one word, in bytes.
const maxField = 128

func (p place) readFormats(text string) (evidence.LogLine, bool) {
	for _, format := range []func(string, place) (evidence.LogLine, bool){
		parseNginxError, parseHAProxy, parseCombined, parseEnvoy, parseJSON,
	} {
		if l, ok := format(text, p); ok {
			return l, true
		}
	}
	return evidence.LogLine{}, false
}

// header is what stands in front of the line that a program wrote.
type header struct {
	time      time.Time
	precision time.Duration
	pid       int
}

// unwrap takes off what syslog (RFC 3164, or with RFC 3339 times) and container
// runtimes (CRI: "time stderr F text") put in front.
func (p place) unwrap(raw string) (header, string) {
	rest := raw
	if end := strings.IndexByte(rest, '>'); strings.HasPrefix(rest, "<") && end > 0 && end < len("<191>") {
		_, rest, _ = strings.Cut(rest, ">")
	}
	at, precision, rest, dated := p.leadingTime(rest)
	if !dated {
		pid, body, _ := cutTag(rest)
		return header{pid: pid}, body
	}
	h := header{time: at, precision: precision}
	f := strings.SplitN(rest, " ", 3)
	if len(f) == 3 && (f[0] == "stdout" || f[0] == "stderr") && (f[1] == "F" || f[1] == "P") {
		return h, f[2]
	}
	if len(f) > 1 { // the host's name, then the program's
		pid, body, ok := cutTag(strings.TrimPrefix(rest, f[0]+" "))
		if ok {
			h.pid = pid
			return h, body
		}
	}
	return h, raw
}

// cutTag takes "haproxy[674]: " or "nginx: " off.
func cutTag(text string) (pid int, rest string, ok bool) {
	tag, rest, ok := strings.Cut(text, ": ")
	if !ok || len(tag) == 0 || len(tag) > 64 || strings.ContainsAny(tag, " \"{=") {
		return 0, text, false
	}
	program, digits, bracket := strings.Cut(strings.TrimSuffix(tag, "]"), "[")
	if bracket {
		n, err := strconv.Atoi(digits)
		return n, rest, err == nil && program != ""
	}
	return 0, rest, !strings.ContainsAny(tag, ":/[]")
}

// layouts are the times that lines begin with, and how many words each has. A
// fraction of a second may follow and is parsed without being named (package time).
var layouts = []struct {
	layout string
	words  int
}{
	{"2006-01-02T15:04:05Z07:00", 1},
	{"2006-01-02T15:04:05Z0700", 1},
	{"2006-01-02T15:04:05", 1},
	{"2006-01-02 15:04:05Z07:00", 2},
	{"2006-01-02 15:04:05", 2},
	{"2006/01/02 15:04:05", 2},
	{"Jan 2 15:04:05", 3},
}

// leadingTime reads the time that a line begins with, and what is behind it.
func (p place) leadingTime(text string) (at time.Time, precision time.Duration, rest string, ok bool) {
	if len(text) < len("Jan 2 15:04:05") || strings.IndexByte("[0123456789ADFJMNOS", text[0]) < 0 {
		return time.Time{}, 0, text, false
	}
	for _, l := range layouts {
		stamp, rest := cutWords(strings.TrimPrefix(text, "["), l.words)
		stamp = strings.Replace(strings.TrimRight(stamp, "]:,"), ",", ".", 1)
		if !fits(l.layout, stamp) {
			continue
		}
		if at, err := time.ParseInLocation(l.layout, stamp, p.loc); err == nil {
			return p.inYear(at), precisionOf(stamp), rest, true
		}
	}
	return time.Time{}, 0, text, false
}

// fits spares the attempt, and its error, where a stamp has another shape.
func fits(layout, stamp string) bool {
	const date = len("2006-01-02")
	if len(stamp) <= date || (layout[0] == 'J') == (stamp[0] <= '9') {
		return false
	}
	if layout[0] == 'J' {
		return true
	}
	zoned := strings.ContainsAny(stamp[date:], "Z+-")
	return layout[4] == stamp[4] && layout[date] == stamp[date] && zoned == strings.Contains(layout, "Z07")
}

// cutWords takes n words off. More than one space between them counts as one, as
// in syslog's "Nov  3".
func cutWords(text string, n int) (words, rest string) {
	var w []string
	rest = text
	for range n {
		word, behind, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		w, rest = append(w, word), behind
	}
	return strings.Join(w, " "), rest
}

// inYear gives a time without year the last one that does not put it far behind
// now: a log knows no future, but it may be read later than now.
func (p place) inYear(at time.Time) time.Time {
	if at.Year() != 0 {
		return at
	}
	const month = 31 * 24 * time.Hour
	year := p.now.Year() + 1
	for at.AddDate(year, 0, 0).After(p.now.Add(month)) {
		year--
	}
	return at.AddDate(year, 0, 0)
}

// precisionOf is the unit of a stamp's last digit.
func precisionOf(stamp string) time.Duration {
	unit := time.Second
	_, fraction, _ := strings.Cut(stamp, ".")
	for _, c := range fraction {
		if c < '0' || c > '9' || unit == 1 {
			break
		}
		unit /= 10
	}
	return unit
}

// idForms find the ids of requests and traces in any text. Each pattern's first
// group is the id; kind says which, and hint is what the text must hold in lower
// case.
var idForms = []struct {
	kind, hint string
	form       *regexp.Regexp
}{
	// W3C Trace Context traceparent: version-trace-span-flags.
	{"traceparent", "-0", regexp.MustCompile(`\b[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\b`)},
	// AWS X-Ray: 1-8hex-24hex is a W3C id with dashes.
	{"xray", "=1-", regexp.MustCompile(`=1-([0-9a-f]{8})-([0-9a-f]{24})\b`)},
	{"datadog", "dd.trace", regexp.MustCompile(`(?i)\bdd\.trace_id\\?["']?\s*[=:]\s*\\?["']?([0-9]{1,20})\b`)},
	{"trace", "trace", regexp.MustCompile(`(?i)\b(?:(?:otel|x-b3)[._-])?trace[._-]?id\\?["']?\s*[=:]\s*\\?["']?([0-9a-f]{32}|[0-9a-f]{16})\b`)},
	{"span", "span", regexp.MustCompile(`(?i)\b(?:(?:otel|x-b3)[._-])?span[._-]?id\\?["']?\s*[=:]\s*\\?["']?([0-9a-f]{16})\b`)},
	{"request", "id", regexp.MustCompile(`(?i)\b(?:x[_-])?(?:request|correlation)[._-]?id\\?["']?\s*[=:]\s*\\?["']?([0-9A-Za-z][0-9A-Za-z._:+/=-]{5,79})`)},
}

// findIDs fills the ids that the line's own format did not give.
func findIDs(text string, l *evidence.LogLine) {
	low := strings.ToLower(text)
	for _, f := range idForms {
		if !strings.Contains(low, f.hint) {
			continue
		}
		m := f.form.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		switch f.kind {
		case "traceparent":
			setTrace(l, m[1], m[2])
		case "xray":
			setTrace(l, m[1]+m[2], "")
		case "datadog":
			if n, err := strconv.ParseUint(m[1], 10, 64); err == nil {
				setTrace(l, hex16(n), "")
			}
		case "trace":
			setTrace(l, m[1], "")
		case "span":
			setTrace(l, "", m[1])
		case "request":
			if l.RequestID == "" {
				l.RequestID = strings.TrimRight(m[1], ".:,=")
			}
		}
	}
}

// setTrace keeps the first ids. An id of zeros is none (W3C Trace Context 3.2.2.3).
func setTrace(l *evidence.LogLine, trace, span string) {
	if l.TraceID == "" && strings.Trim(trace, "0") != "" {
		l.TraceID = strings.ToLower(trace)
	}
	if l.SpanID == "" && strings.Trim(span, "0") != "" {
		l.SpanID = strings.ToLower(span)
	}
}

func hex16(n uint64) string {
	s := strconv.FormatUint(n, 16)
	return strings.Repeat("0", 16-len(s)) + s
}

// parseEndpoint reads "192.0.2.1:80", "[2001:db8::1]:80", a bare address (port 0),
// a URL's host, and HAProxy's and Envoy's "2001:db8::1:80" without brackets. The
// zero value means there is none, as with names and unix sockets.
func parseEndpoint(s string) netip.AddrPort {
	if _, host, ok := strings.Cut(s, "://"); ok {
		s, _, _ = strings.Cut(host, "/")
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap().WithZone(""), 0)
	}
	return netip.AddrPort{}
}

// parseUnbracketed reads address:port where IPv6 addresses have no brackets: what
// is behind the last colon is the port.
func parseUnbracketed(s string) (netip.AddrPort, bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddr(strings.Trim(s[:i], "[]"))
	if err != nil {
		return netip.AddrPort{}, false
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(port)), err == nil
}

// maxAddresses bounds what is found in one line.
const maxAddresses = 8

// findEndpoints finds the addresses with a port in any text, and those without if
// they do not look like a version ("Chrome/131.0.0.0").
func findEndpoints(text string) []netip.AddrPort {
	var found []netip.AddrPort
	for i := 0; i < len(text) && len(found) < maxAddresses; {
		if !addressByte(text[i]) {
			i++
			continue
		}
		from := i
		for i < len(text) && addressByte(text[i]) {
			i++
		}
		word := strings.Trim(text[from:i], ".")
		if !strings.HasPrefix(word, "::") {
			word = strings.TrimPrefix(word, ":")
		}
		e := parseEndpoint(strings.TrimSuffix(word, ":"))
		bare := e.Port() == 0
		if !e.IsValid() || e.Addr().IsUnspecified() || bare && from > 0 && strings.IndexByte("/-_v", text[from-1]) >= 0 {
			continue
		}
		found = append(found, e)
	}
	return found
}

func addressByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == '.' || c == ':' || c == '[' || c == ']'
}

func withPort(e netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(e.Addr(), port)
}
