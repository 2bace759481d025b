package logs

import (
	"cmp"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// timeKeys are the names under which JSON logs write their time.
var timeKeys = []string{"start_time", "time", "timestamp", "@timestamp", "ts", "time_iso8601", "asctime"}

// parseJSON reads a line that is one JSON object: Envoy's access log, an nginx
// access log whose fields have nginx's names, a container runtime's wrapper
// ({"log": line, "time": ...}), or any application's.
func parseJSON(text string, p place) (l evidence.LogLine, ok bool) {
	if !strings.HasPrefix(text, "{") {
		return l, false
	}
	var raw map[string]any
	if json.Unmarshal([]byte(text), &raw) != nil {
		return l, false
	}
	f := flatten(raw)
	at, precision := f.time(p)
	_, response := f["response_flags"]
	_, long := f["response_flags_long"]
	_, status := f["status"]
	switch wrapped := f["log"]; {
	case wrapped != "" && f["stream"] != "":
		l = p.read(strings.TrimRight(wrapped, "\r\n"))
	case (response || long) && !at.IsZero():
		l = f.line(at, precision)
	case status && f["remote_addr"] != "":
		l = f.nginx()
	default:
		l = parseApplication(text)
	}
	if l.Time.IsZero() || f["log"] != "" && !at.IsZero() {
		l.Time, l.Precision = at, precision
	}
	l.Level = cmp.Or(l.Level, strings.ToLower(f.any("level", "severity", "lvl")))
	return l, true
}

// flatten makes strings of an object's plain values, with lower-case names and
// underscores for dashes. What is not set is left out.
func flatten(raw map[string]any) envoyFields {
	f := make(envoyFields, len(raw))
	for k, v := range raw {
		k = strings.ReplaceAll(strings.ToLower(k), "-", "_")
		switch v := v.(type) {
		case string:
			if v != "-" {
				f[k] = v
			} else if strings.HasPrefix(k, "response_flags") {
				f[k] = ""
			}
		case float64:
			f[k] = strconv.FormatFloat(v, 'f', -1, 64)
		}
	}
	return f
}

// time finds the entry's time: a date, or seconds or milliseconds since 1970.
func (f envoyFields) time(p place) (time.Time, time.Duration) {
	for _, k := range timeKeys {
		if at, precision, _, ok := p.leadingTime(f[k]); ok {
			return at, precision
		}
		if n, err := strconv.ParseFloat(f[k], 64); err == nil && n > 1e8 && n < 1e14 {
			if n > 1e11 {
				n /= 1e3
			}
			whole, part := math.Modf(n)
			return time.Unix(int64(whole), int64(part*1e9)).Round(time.Microsecond), time.Millisecond
		}
	}
	return time.Time{}, 0
}

// nginx reads the fields that have the names of nginx's variables.
func (f envoyFields) nginx() evidence.LogLine {
	l := evidence.LogLine{Source: evidence.LogNginxAccess, Client: parseEndpoint(f["remote_addr"])}
	if port, err := strconv.ParseUint(f["remote_port"], 10, 16); err == nil && l.Client.IsValid() && l.Client.Port() == 0 {
		l.Client = withPort(l.Client, uint16(port))
	}
	upstreams := strings.FieldsFunc(f["upstream_addr"], func(r rune) bool { return r == ',' || r == ' ' })
	if len(upstreams) > 0 { // the last one tried gave the answer
		l.Upstream = parseEndpoint(upstreams[len(upstreams)-1])
	}
	l.RequestID, l.Connection = f["request_id"], f["connection"]
	l.Status = parseStatus(f["status"])
	judgeStatus(&l)
	return l
}
