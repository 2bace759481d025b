package logs

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tcpcoroner/evidence"
)

// here is where the samples were written: an hour east of Greenwich, in November.
var here = place{time.FixedZone("", 3600), time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}

// endpoint is "" for none and an address without a port for port 0.
func endpoint(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 0)
	}
	return netip.MustParseAddrPort(s)
}

func endpoints(all ...string) (found []netip.AddrPort) {
	for _, s := range all {
		found = append(found, endpoint(s))
	}
	return found
}

type sample struct {
	name, text string
	want       evidence.LogLine
}

// check compares what each sample means; the text is compared where it is given.
func check(t *testing.T, samples []sample) {
	t.Helper()
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			got := here.parse(s.text)
			if s.want.Text == "" {
				got.Text = ""
			}
			if s.want.Timers == nil {
				got.Timers = nil
			}
			diffLine(t, s.want, got)
		})
	}
}

func diffLine(t *testing.T, want, got evidence.LogLine) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnwrap(t *testing.T) {
	tests := []struct {
		name, raw, body string
		time            time.Time
		pid             int
	}{
		{"syslog to a file", "Nov 23 02:13:00 web1 haproxy[674]: text", "text", time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC), 674},
		{"one digit of a day", "Nov  3 02:13:00 web1 nginx: text", "text", time.Date(2026, 11, 3, 1, 13, 0, 0, time.UTC), 0},
		{"last year's", "Dec 31 23:59:59 web1 nginx: text", "text", time.Date(2025, 12, 31, 22, 59, 59, 0, time.UTC), 0},
		{"on the wire", "<134>Nov 23 02:13:00 web1 haproxy[674]: text", "text", time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC), 674},
		{"with a zone", "2026-11-23T02:13:00.123456+00:00 web1 haproxy[674]: text", "text", time.Date(2026, 11, 23, 2, 13, 0, 123456000, time.UTC), 674},
		{"only the program", "haproxy[674]: text", "text", time.Time{}, 674},
		{"container", "2026-11-23T02:13:00.5Z stderr F text: more", "text: more", time.Date(2026, 11, 23, 2, 13, 0, 5e8, time.UTC), 0},
		{"python", "2026-11-23 02:13:00,123 ERROR text", "2026-11-23 02:13:00,123 ERROR text", time.Date(2026, 11, 23, 1, 13, 0, 123e6, time.UTC), 0},
		{"nothing", "just text", "just text", time.Time{}, 0},
		{"empty", "", "", time.Time{}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, body := here.unwrap(tt.raw)
			if body != tt.body || !h.time.Equal(tt.time) || h.pid != tt.pid {
				t.Errorf("%q at %v by %d, want %q at %v by %d", body, h.time.UTC(), h.pid, tt.body, tt.time, tt.pid)
			}
		})
	}
}

func TestYearOfSyslog(t *testing.T) {
	january := place{time.UTC, time.Date(2027, 1, 1, 0, 0, 5, 0, time.UTC)}
	at, _, _, ok := january.leadingTime("Dec 31 23:59:58 web1 nginx: text")
	if want := time.Date(2026, 12, 31, 23, 59, 58, 0, time.UTC); !ok || !at.Equal(want) {
		t.Errorf("%v, want %v", at, want)
	}
}

func TestFindEndpoints(t *testing.T) {
	tests := []struct {
		text string
		want []netip.AddrPort
	}{
		{"read tcp 192.0.2.1:4711->192.0.2.2:80: read: connection reset by peer", endpoints("192.0.2.1:4711", "192.0.2.2:80")},
		{"dial tcp [2001:db8::1]:443: connect: connection refused", endpoints("[2001:db8::1]:443")},
		{"io.netty: L:/192.0.2.1:80 - R:/192.0.2.2:1234", endpoints("192.0.2.1:80", "192.0.2.2:1234")},
		{"peer=192.0.2.9, port=80", endpoints("192.0.2.9")},
		{"::ffff:192.0.2.1 said", endpoints("192.0.2.1")},
		{"Chrome/131.0.0.0 at 02:13:00 in v1.2.3.4", nil},
		{"0.0.0.0:80 and :: and 300.1.2.3:80 and 1.2.3:4", nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, findEndpoints(tt.text), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestFindIDs(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	tests := []struct{ name, text, trace, span, request string }{
		{"traceparent", "traceparent: 00-" + trace + "-" + span + "-01", trace, span, ""},
		{"traceparent in quotes", `"00-` + trace + "-" + span + `-00" upstream`, trace, span, ""},
		{"otel fields", "trace_id=" + trace + " span_id=" + span + " trace_flags=01", trace, span, ""},
		{"syslog's structured data", `[opentelemetry trace_id="` + trace + `" span_id="` + span + `"]`, trace, span, ""},
		{"json", `{"traceId":"` + trace + `","spanId":"` + span + `","requestId":"a1b2c3d4"}`, trace, span, "a1b2c3d4"},
		{"json in json", `{"log":"{\"trace_id\":\"` + trace + `\"}"}`, trace, "", ""},
		{"upper case", "X-B3-TraceId: 4BF92F3577B34DA6A3CE929D0E0E4736", trace, "", ""},
		{"b3 of 64 bit", "x-b3-traceid=00f067aa0ba902b7", span, "", ""},
		{"datadog", `"dd.trace_id":"1234567890123456789"`, "112210f47de98115", "", ""},
		{"x-ray", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1", "5759e988bd862e3fe1be46a994272793", "", ""},
		{"zeros", "trace_id=00000000000000000000000000000000", "", "", ""},
		{"request id", "X-Request-ID: cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2, more", "", "", "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2"},
		{"none", "GET /trace_id HTTP/1.1", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := here.parse(tt.text)
			if l.TraceID != tt.trace || l.SpanID != tt.span || l.RequestID != tt.request {
				t.Errorf("trace %q span %q request %q, want %q %q %q", l.TraceID, l.SpanID, l.RequestID, tt.trace, tt.span, tt.request)
			}
		})
	}
}

func TestParseApplication(t *testing.T) {
	at := time.Date(2026, 11, 23, 1, 13, 0, 0, time.UTC)
	file := evidence.LogFile
	check(t, []sample{
		{"go server", "2026/11/23 02:13:00 http: proxy error: read tcp 192.0.2.1:40112->192.0.2.2:80: read: connection reset by peer", evidence.LogLine{
			Time: at, Precision: time.Second, Source: file, Phase: evidence.PhaseData, Reason: evidence.ReasonReset,
			Local: endpoint("192.0.2.1:40112"), Addresses: endpoints("192.0.2.2:80"),
		}},
		{"go dial", "dial tcp 192.0.2.2:80: connect: connection refused", evidence.LogLine{
			Source: file, Phase: evidence.PhaseConnect, Reason: evidence.ReasonConnectRefused, Addresses: endpoints("192.0.2.2:80"),
		}},
		{"go dial timeout", "dial tcp 192.0.2.2:80: i/o timeout", evidence.LogLine{
			Source: file, Phase: evidence.PhaseConnect, Reason: evidence.ReasonConnectTimeout, Addresses: endpoints("192.0.2.2:80"),
		}},
		{"node", "Error: read ECONNRESET { errno: -104, code: 'ECONNRESET', syscall: 'read' }", evidence.LogLine{
			Source: file, Phase: evidence.PhaseData, Reason: evidence.ReasonReset,
		}},
		{"python", "2026-11-23 02:13:00,123 ERROR ConnectionResetError: [Errno 104] Connection reset by peer", evidence.LogLine{
			Time: at.Add(123 * time.Millisecond), Precision: time.Millisecond, Source: file, Reason: evidence.ReasonReset,
		}},
		{"rust", "Io(Os { code: 32, kind: BrokenPipe }): Broken pipe (os error 32)", evidence.LogLine{Source: file, Reason: evidence.ReasonBrokenPipe}},
		{"bare number", "send failed errno=104 peer 192.0.2.9:7", evidence.LogLine{
			Source: file, Phase: evidence.PhaseData, Reason: evidence.ReasonReset, Addresses: endpoints("192.0.2.9:7"),
		}},
		{"java", "java.net.SocketException: Connection reset", evidence.LogLine{Source: file, Reason: evidence.ReasonReset}},
		{"no ports left", "connect: Cannot assign requested address", evidence.LogLine{
			Source: file, Phase: evidence.PhaseConnect, Reason: evidence.ReasonNoLocalPort,
		}},
		{"another number", "errno=5 Input/output error", evidence.LogLine{Source: file}},
		{"nothing", "listening", evidence.LogLine{Source: file}},
		{"a control sequence does not reach the terminal", "\x1b[2Jhello\tworld", evidence.LogLine{Source: file, Text: "[2Jhello world"}},
	})
}

func TestParseJSON(t *testing.T) {
	at := time.Date(2026, 11, 23, 2, 13, 0, 5e8, time.UTC)
	check(t, []sample{
		{"application", `{"ts":1795399980.5,"level":"ERROR","msg":"write tcp 192.0.2.1:80->192.0.2.9:4711: write: broken pipe"}`, evidence.LogLine{
			Time: at, Precision: time.Millisecond, Source: evidence.LogFile, Level: "error", Phase: evidence.PhaseData,
			Reason: evidence.ReasonBrokenPipe, Local: endpoint("192.0.2.1:80"), Addresses: endpoints("192.0.2.9:4711"),
		}},
		{"container runtime", `{"log":"2026/11/23 03:13:00 [error] 7#7: *1 upstream timed out (110: Connection timed out) while reading upstream, client: 192.0.2.9, server: , request: \"GET / HTTP/1.1\", upstream: \"http://192.0.2.2:80/\"\n","stream":"stderr","time":"2026-11-23T02:13:00.5Z"}`, evidence.LogLine{
			Time: at, Precision: 100 * time.Millisecond, Source: evidence.LogNginxError, Level: "error", PID: 7, Connection: "1", Party: evidence.PartyServer,
			Phase: evidence.PhaseData, Reason: evidence.ReasonUpstreamTimeout, Client: endpoint("192.0.2.9"), Upstream: endpoint("192.0.2.2:80"),
		}},
		{"nginx", `{"time_iso8601":"2026-11-23T02:13:00+00:00","remote_addr":"192.0.2.9","remote_port":"4711","status":502,"upstream_addr":"192.0.2.2:80, 192.0.2.3:80","request_id":"f0e1d2c3b4a5968778695a4b3c2d1e0f"}`, evidence.LogLine{
			Time: at.Truncate(time.Second), Precision: time.Second, Source: evidence.LogNginxAccess, Status: 502, Party: evidence.PartyServer,
			Phase: evidence.PhaseResponse, Reason: evidence.ReasonBadGateway, Client: endpoint("192.0.2.9:4711"), Upstream: endpoint("192.0.2.3:80"),
			RequestID: "f0e1d2c3b4a5968778695a4b3c2d1e0f",
		}},
		{"cut short", `{"ts":1795399980.5,"msg":"ECONNRESET`, evidence.LogLine{Source: evidence.LogFile, Reason: evidence.ReasonReset}},
	})
}

func TestParseKernel(t *testing.T) {
	tests := []struct {
		text      string
		party     evidence.LogParty
		reason    evidence.LogReason
		addresses []netip.AddrPort
	}{
		{"nf_conntrack: nf_conntrack: table full, dropping packet", evidence.PartyNetwork, evidence.ReasonTableFull, nil},
		{"TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:80. Sending cookies.", "", evidence.ReasonSYNFlood, nil},
		{"Out of memory: Killed process 4711 (java) total-vm:1kB", "", evidence.ReasonOOMKill, nil},
		{"Memory cgroup out of memory: Killed process 4711 (java)", "", evidence.ReasonOOMKill, nil},
		{"TCP: out of memory -- consider tuning tcp_mem", "", evidence.ReasonTCPMemory, nil},
		{"TCP: too many orphaned sockets", "", evidence.ReasonOrphans, nil},
		{"e1000e 0000:00:1f.6 eno1: NIC Link is Down", evidence.PartyNetwork, evidence.ReasonLinkDown, nil},
		{"mlx5_core 0000:03:00.0 ens1: Link down", evidence.PartyNetwork, evidence.ReasonLinkDown, nil},
		{"neighbour: arp_cache: neighbor table overflow!", evidence.PartyNetwork, evidence.ReasonNeighbours, nil},
		{"[UFW BLOCK] IN=eth0 OUT= MAC=00:11:22:33:44:55:66:77:88:99:aa:bb:08:00 SRC=192.0.2.9 DST=192.0.2.2 LEN=60 TTL=64 ID=1 DF PROTO=TCP SPT=4711 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0",
			evidence.PartyNetwork, evidence.ReasonFirewall, endpoints("192.0.2.9:4711", "192.0.2.2:22")},
		{"IN=eth0 SRC=192.0.2.9 DST=192.0.2.2 PROTO=UDP SPT=53 DPT=53", "", "", nil},
		{"usb 1-1: new device", "", "", nil},
	}
	for _, tt := range tests {
		l := parseKernel(tt.text)
		if l.Party != tt.party || l.Reason != tt.reason || !cmp.Equal(l.Addresses, tt.addresses, cmpopts.EquateComparable(netip.AddrPort{})) {
			t.Errorf("%s: %q %q %v", tt.text, l.Party, l.Reason, l.Addresses)
		}
	}
}
