package verdict

import (
	"testing"

	"tcpcoroner/evidence"
)

// TestSettings: what a proxy's line points to.
func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		line evidence.LogLine
		want string
	}{
		{evidence.LogLine{Source: evidence.LogHAProxy, Flags: "sD", Reason: evidence.ReasonServerTimeout, Phase: evidence.PhaseData}, "timeout server"},
		{evidence.LogLine{Source: evidence.LogHAProxy, Flags: "cD", Reason: evidence.ReasonClientTimeout, Phase: evidence.PhaseData}, "timeout client"},
		{evidence.LogLine{Source: evidence.LogHAProxy, Flags: "cR", Reason: evidence.ReasonClientTimeout, Phase: evidence.PhaseRequest}, "timeout http-request"},
		{evidence.LogLine{Source: evidence.LogHAProxy, Flags: "sQ", Reason: evidence.ReasonQueueTimeout, Phase: evidence.PhaseQueue}, "timeout queue"},
		{evidence.LogLine{Source: evidence.LogHAProxy, Flags: "CD", Reason: evidence.ReasonClientClosed, Phase: evidence.PhaseData}, ""},
		{evidence.LogLine{Source: evidence.LogNginxError, Reason: evidence.ReasonUpstreamTimeout, Phase: evidence.PhaseResponse,
			Text: "upstream timed out (110: Connection timed out) while reading response header from upstream"}, "proxy_read_timeout"},
		{evidence.LogLine{Source: evidence.LogNginxError, Reason: evidence.ReasonClientTimeout, Phase: evidence.PhaseRequest,
			Text: "client timed out (110: Connection timed out) while reading client request headers"}, "client_header_timeout"},
		{evidence.LogLine{Source: evidence.LogNginxError, Reason: evidence.ReasonClientTimeout, Phase: evidence.PhaseRequest,
			Text: "client timed out (110: Connection timed out) while reading client request body"}, "client_body_timeout"},
		{evidence.LogLine{Source: evidence.LogNginxError, Reason: evidence.ReasonLimit, Text: "limiting connections by zone"}, "limit_conn"},
		{evidence.LogLine{Source: evidence.LogNginxError, Reason: evidence.ReasonLimit, Text: "too many open files"}, ""},
		{evidence.LogLine{Source: evidence.LogEnvoyAccess, Flags: "SI", Reason: evidence.ReasonIdleTimeout, Phase: evidence.PhaseIdle}, "stream_idle_timeout"},
		{evidence.LogLine{Source: evidence.LogJournal, Reason: evidence.ReasonTimeout}, ""},
	} {
		if got, _ := settingOf(&tt.line); got.knob != tt.want {
			t.Errorf("%s %s %q points to %q, want %q", tt.line.Source, tt.line.Reason, tt.line.Text, got.knob, tt.want)
		}
	}
	for source, list := range settings {
		for _, s := range list {
			if s.effect == "" || s.timer != (logMeanings[s.reason].cause == evidence.CauseTimeout || s.reason == evidence.ReasonConnectTimeout) && s.knob != "max_connection_duration" {
				t.Errorf("%s: %q has no side effect, or is a timer and is not told as one", source, s.knob)
			}
		}
	}
}

// TestAdviceNamesTheSetting: the line that gave the cause gives the advice too.
func TestAdviceNamesTheSetting(t *testing.T) {
	inc := told(served(true, activeRST), sentEvent(nil))
	inc.Logs = []evidence.LogLine{{Time: atMS(9), Source: evidence.LogNginxError, Reason: evidence.ReasonBodyTooLarge, Client: client, Text: "too large"}}
	a := one(t, inc).Verdict.Claim().Advice
	if len(a) < 2 || a[0].Knob != "client_max_body_size" || a[0].SideEffect == "" || a[0].Value != "" {
		t.Errorf("advice %+v", a)
	}
	inc.Logs[0].Reason = evidence.ReasonUpstreamTimeout
	a = one(t, inc).Verdict.Claim().Advice
	if len(a) < 2 || a[0].Knob != "proxy_read_timeout" || a[0].Value == "" {
		t.Errorf("advice %+v", a)
	}
}
