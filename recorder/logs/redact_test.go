package logs

import (
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

func TestRedact(t *testing.T) {
	const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
	tests := []struct{ name, text, want string }{
		{"password", "login password=hunter2 ok", "login password=[redacted] ok"},
		{"in quotes", `password="hunter 2" ok`, "password=[redacted] ok"},
		{"json", `{"user":"joe","password":"hun\"ter2","n":1}`, `{"user":"joe","password":[redacted],"n":1}`},
		{"json in json", `{"log":"{\"token\":\"hunter2\"}"}`, `{"log":"{\"token\":[redacted]}"}`},
		{"environment", "DB_PASSWORD=hunter2 PGPASSWORD=hunter2 APP_SECRET_KEY='hunter2'", "DB_PASSWORD=[redacted] PGPASSWORD=[redacted] APP_SECRET_KEY=[redacted]"},
		{"command line", "app --token hunter2 --db-password=hunter2 --port 80", "app --token [redacted] --db-password=[redacted] --port 80"},
		{"query", "GET /a?user=joe&token=hunter2&key=hunter2&page=2 HTTP/1.1", "GET /a?user=joe&token=[redacted]&key=[redacted]&page=2 HTTP/1.1"},
		{"signed url", "?X-Amz-Signature=hunter2&sig=hunter2", "?X-Amz-Signature=[redacted]&sig=[redacted]"},
		{"url", "postgres://joe:hunter2@192.0.2.1:5432/db", "postgres://[redacted]@192.0.2.1:5432/db"},
		{"authorization", "Authorization: Bearer hunter2hunter2", "Authorization: [redacted]"},
		{"authorization of curl", `curl -H "Authorization: Basic aHVudGVyMg==" http://192.0.2.1/`, `curl -H "Authorization: [redacted]" http://192.0.2.1/`},
		{"authorization in json", `{"authorization":"Bearer hunter2","path":"/"}`, `{"authorization":"[redacted]","path":"/"}`},
		{"cookie", `Cookie: a=hunter2; b=hunter2`, "Cookie: [redacted]"},
		{"set-cookie in json", `{"set-cookie":"sid=hunter2; Path=/","n":1}`, `{"set-cookie":"[redacted]","n":1}`},
		{"bearer", "sent bearer abcdefgh.hunter2", "sent bearer [redacted]"},
		{"jwt", "got " + jwt + " from", "got [redacted] from"},
		{"half a jwt", "got " + jwt[:30], "got [redacted]"},
		{"aws", "id AKIAIOSFODNN7EXAMPLE aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "id [redacted] aws_secret_access_key = [redacted]"},
		{"github", "clone with ghp_abcdefghijklmnop1234", "clone with [redacted]"},
		{"private key", "-----BEGIN RSA PRIVATE KEY----- MIIhunter2 -----END RSA PRIVATE KEY----- end", "[redacted] end"},
		{"private key cut short", "x -----BEGIN PRIVATE KEY----- MIIhunter2", "x [redacted]"},
		{"session", "PHPSESSID=hunter2; session_id: hunter2", "PHPSESSID=[redacted]; session_id: [redacted]"},
		{"api key header", "x-api-key: hunter2, host: shop", "x-api-key: [redacted], host: shop"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Redact(tt.text); got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestRedactKeepsEvidence(t *testing.T) {
	for _, text := range []string{
		"read tcp 192.0.2.1:40112->192.0.2.2:80: read: connection reset by peer",
		"trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7 request_id=cc21d9b0",
		"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		`[error] 7#7: *1 connect() failed (111: Connection refused) while connecting to upstream, client: 192.0.2.9, upstream: "http://192.0.2.2:80/a"`,
		"SRC=192.0.2.9 DST=192.0.2.2 PROTO=TCP SPT=4711 DPT=22",
		"keepalive timeout, monkey=1, passenger=2, bypass=3, author=4",
		"nginx: master process /usr/sbin/nginx -g daemon on; master_process on;",
	} {
		if got := Redact(text); got != text {
			t.Errorf("%s\nbecame %s", text, got)
		}
	}
}

// What is quoted of a client's bytes is kept if it is text.
func TestTidyKeepsNoPayload(t *testing.T) {
	const line = `[info] 7#7: *2 client sent invalid method while reading client request line, client: 192.0.2.9, server: , request: `
	for _, test := range []struct{ raw, want string }{
		{line + "\"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret\"secret\n\"", line + `"[binary]"`},
		{line + "\"\x16\x03\x01secret", line + `"[binary]"`},
		{`192.0.2.9 - - [24/Nov/2026:04:00:00 +0000] "\x16\x03\x01\x02secret" 400 157 "-" "-"`, `192.0.2.9 - - [24/Nov/2026:04:00:00 +0000] "[binary]"`},
		{line + `"GET /a%20b\xC3\xA4 HTTP/1.1"`, line + `"GET /a%20b\xC3\xA4 HTTP/1.1"`},
		{"msg=\"reset by peer\"\r", `msg="reset by peer"`},
		{"\x1b[31mlevel\x1b[0m=\"error\"\tmsg=\"reset by peer\"", `[31mlevel [0m="error" msg="reset by peer"`},
	} {
		if got := tidy(test.raw); got != test.want {
			t.Errorf("%q\nbecame %s", test.raw, got)
		}
	}
}

func TestTidyBoundsAnyLine(t *testing.T) {
	for _, raw := range []string{strings.Repeat("x", 1<<20), strings.Repeat("ü", 1<<19), strings.Repeat("\xff", 1<<20), strings.Repeat("password=hunter2 ", 1<<16)} {
		if got := tidy(raw); len(got) > evidence.MaxLogText || strings.Contains(got, "hunter2") {
			t.Errorf("%d bytes, beginning %.40q", len(got), got)
		}
	}
}
