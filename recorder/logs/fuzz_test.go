package logs

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tcpcoroner/evidence"
)

// sound checks what must hold of any line whatever its bytes are.
func sound(t *testing.T, l evidence.LogLine) {
	t.Helper()
	if len(l.Text) > evidence.MaxLogText || !utf8.ValidString(l.Text) || strings.ContainsAny(l.Text, "\x00\x1b\n") {
		t.Errorf("the text is not fit to keep: %q", l.Text)
	}
	if l.Party != "" && l.Reason == "" {
		t.Errorf("%q is blamed for nothing", l.Party)
	}
	if len(l.Addresses) > 2*maxAddresses || l.Precision < 0 || l.Status < 0 {
		t.Errorf("out of bounds: %+v", l)
	}
	for _, timer := range l.Timers {
		if timer.Took < 0 || timer.Took > maxTimer {
			t.Errorf("the timer %s took %v", timer.Name, timer.Took)
		}
	}
	_ = l.Around(time.Unix(0, 0), time.Unix(1, 0))
}

// fuzzFormat fuzzes one format's parser.
func fuzzFormat(f *testing.F, parse func(string, place) (evidence.LogLine, bool), seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, ok := parse(text, here)
		if ok && l.Source == "" {
			t.Error("a line of no source")
		}
		sound(t, l)
	})
}

func FuzzNginxError(f *testing.F) {
	fuzzFormat(f, parseNginxError, `2026/11/23 02:13:00 [error] 7#7: *1 connect() failed (111: x) while connecting to upstream, client: 192.0.2.9, upstream: "http://192.0.2.2:80/"`, "2026/11/23 02:13:00 [")
}

func FuzzCombined(f *testing.F) {
	fuzzFormat(f, parseCombined, `192.0.2.9 - - [23/Nov/2026:03:13:00 +0100] "GET / HTTP/1.1" 499 0 "-" "-"`)
}

func FuzzHAProxy(f *testing.F) {
	fuzzFormat(f, parseHAProxy, `127.0.0.1:34550 [15/Oct/2003:15:24:28.312] a a/b 0/0/5007 0 cD 0/0/0/0/0 0/0`,
		`127.0.0.1:1 [15/Oct/2003:15:24:28.312] a a/b 0/0/0/0/+1 200 +2 - - SD-- 0/0/0/0/0 0/0 ""`, "unix:1 [15/Oct/2003:15:24:28.312] f: x", "Connect from 1.1.1.1:1 to 1.1.1.2:2 (a/b)", "Server ", "backend  is DOWN")
}

func FuzzEnvoy(f *testing.F) {
	fuzzFormat(f, parseEnvoy, `[2026-11-23T02:13:00.310Z] "GET / HTTP/2" 503 UC 1 2 3 - "-" "-" "-" "-" "192.0.2.2:80"`, `[2026-11-23T02:13:00Z] "" - UF a b "c" 1 2 3 4 5 6 7 8`)
}

func FuzzJSON(f *testing.F) {
	fuzzFormat(f, parseJSON, `{"time":1.5e9,"status":502,"remote_addr":"192.0.2.9","remote_port":"1","upstream_addr":","}`, `{"log":"{\"log\":\"x\",\"stream\":\"s\"}","stream":"s"}`, `{"ts":1e300,"response_flags":"UF","start_time":"2026-11-23T02:13:00Z","duration":-1}`)
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"<1>Nov  3 02:13:00 h p[1]: errno=104 192.0.2.1:1->192.0.2.2:2", "2026-11-23T02:13:00Z stderr F x", "dd.trace_id=18446744073709551615", "\xff[[::]:1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) { sound(t, here.parse(raw)) })
}

func FuzzKernel(f *testing.F) {
	f.Add("IN=eth0 SRC=192.0.2.9 DST=192.0.2.2 PROTO=TCP SPT=1 DPT=2 SYN")
	f.Add("nf_conntrack: table full, dropping packet")
	f.Fuzz(func(t *testing.T, text string) { sound(t, parseKernel(text)) })
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"MESSAGE":"x","__REALTIME_TIMESTAMP":"1795399980500000","_PID":"7","PRIORITY":"3"}`))
	f.Add([]byte(`{"MESSAGE":[255,254],"_TRANSPORT":"kernel","__REALTIME_TIMESTAMP":"1"}`))
	f.Add([]byte(`{"MESSAGE":null,"_PID":["1","2"],"__REALTIME_TIMESTAMP":"-1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, message, err := parseEntry(b, here); err == nil {
			finish(message, &l)
			sound(t, l)
		}
	})
}

func FuzzRedact(f *testing.F) {
	f.Add("password=", " ")
	f.Add("/?a=1&token=", "&b=2")
	f.Add("Authorization: Bearer ", "\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "S3cr3tValue"
		text := Redact(before + " password=" + secret + " " + after)
		if !strings.Contains(before, secret) && !strings.Contains(after, secret) && strings.Contains(text, secret) {
			t.Errorf("the secret is still in %q", text)
		}
	})
}
