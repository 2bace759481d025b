package triggers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

const alertmanagerBody = `{"receiver":"tcpcoroner","status":"firing","version":"4","groupKey":"{}:{alertname=\"Errors\"}",
 "alerts":[{"status":"firing","labels":{"alertname":"Errors","job":"web","instance":"web1:9100"},"annotations":{"summary":"5xx  over\n5 %"},
 "startsAt":"2026-03-01T02:13:00.5Z","endsAt":"0001-01-01T00:00:00Z","fingerprint":"aa"},
 {"status":"resolved","labels":{"alertname":"Old"},"annotations":{},"startsAt":"2026-03-01T01:00:00Z"},
 {"status":"firing","labels":{},"annotations":{"description":"d"},"startsAt":"2026-03-01T02:12:00Z"}]}`

func TestParseAlertmanager(t *testing.T) {
	got, err := ParseAlertmanager([]byte(alertmanagerBody))
	firing := func(reason string) evidence.Firing {
		return evidence.Firing{Trigger: "webhook", Expression: "an alert is firing", Value: 1, Threshold: 1, Unit: "{alert}", Reason: reason}
	}
	want := []Asked{
		{Began: time.Date(2026, 3, 1, 2, 13, 0, 5e8, time.UTC), Firing: firing(`Errors {instance="web1:9100", job="web"}: 5xx over 5 %`)},
		{Began: time.Date(2026, 3, 1, 2, 12, 0, 0, time.UTC), Firing: firing("alert without a name: d")},
	}
	noKey := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Key" }, cmp.Ignore())
	if diff := cmp.Diff(want, got, noKey); diff != "" || err != nil {
		t.Fatalf("%v, asked (-want +got):\n%s", err, diff)
	}
	if got[0].Key == got[1].Key || len(got[0].Key) != 16 {
		t.Errorf("keys %x %x", got[0].Key, got[1].Key)
	}
	for body, want := range map[string]string{
		`{"status":"resolved","alerts":[{"labels":{"alertname":"A"}}]}`: "",
		`{"status":"firing"}`: "parse webhook body: it has no alerts: send what Alertmanager's webhook_config sends",
		`{`:                   "parse webhook body: unexpected end of JSON input: send what Alertmanager's webhook_config sends",
	} {
		got, err := ParseAlertmanager([]byte(body))
		if len(got) != 0 || fmt.Sprint(err) != want && (err != nil || want != "") {
			t.Errorf("%s: %+v, %v, want %s", body, got, err, want)
		}
	}
}

func TestParseAsked(t *testing.T) {
	for body, want := range map[string]string{
		`{"reason":"smoke test\nfailed"}`:                "smoke test failed",
		`{"reason":"a","note":" see  ticket 7","x":[1]}`: "a (see ticket 7)",
		`{"reason":" "}`:                                 `parse webhook body: it has no reason: send {"reason": "...", "note": "..."}`,
		`[]`:                                             "parse webhook body: json: cannot unmarshal array",
		`{"reason":"a"}{}`:                               "parse webhook body: invalid character",
		`{"reason":"` + strings.Repeat("x", 999) + `"}`: strings.Repeat("x", maxText) + "...",
	} {
		got, err := ParseAsked([]byte(body))
		text := fmt.Sprint(err)
		if err == nil {
			text = got[0].Firing.Reason
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%.40s: %s, want %s", body, text, want)
		}
	}
}

func FuzzParseAlertmanager(f *testing.F) {
	f.Add([]byte(alertmanagerBody))
	f.Add([]byte(`{"status":"firing","alerts":[{"labels":null}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		all, err := ParseAlertmanager(body)
		for _, a := range all {
			checkAsked(t, &a, err)
		}
	})
}

func FuzzParseAsked(f *testing.F) {
	f.Add([]byte(`{"reason":"a","note":"b"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		all, err := ParseAsked(body)
		for _, a := range all {
			checkAsked(t, &a, err)
		}
	})
}

// checkAsked: what another program wrote is short, and one line.
func checkAsked(t *testing.T, a *Asked, err error) {
	t.Helper()
	if err != nil || a.Firing.Trigger != NameWebhook || len(a.Key) != 16 || a.Firing.Reason == "" ||
		len(a.Firing.Reason) > 3*maxText || strings.ContainsAny(a.Firing.Reason, "\n\r\t") {
		t.Errorf("%v, %+v", err, a)
	}
}

// ask is an alert of a name that began at a second.
func ask(name string, began int) Asked {
	a := Asked{Key: keyOf(name), Firing: evidence.Firing{Trigger: NameWebhook, Reason: name}}
	if began >= 0 {
		a.Began = at(began)
	}
	return a
}

func TestOffer(t *testing.T) {
	type call struct {
		sec   int
		asked []Asked
		fired string
	}
	for _, tt := range []struct {
		name                              string
		cfg                               SetConfig
		calls                             []call
		fired, suppressed, wouldHaveFired uint64
	}{
		{"each alert once while it lasts", SetConfig{CoolDown: 5 * time.Minute, MaxStorm: time.Hour}, []call{
			{0, []Asked{ask("a", 0), ask("b", 0)}, "a b"},
			{30, []Asked{ask("a", 0), ask("b", 0), ask("c", 30)}, "c"},
			{14400, []Asked{ask("a", 0), ask("b", 14390)}, "b"}, // told again after hours, and begun anew
		}, 4, 3, 0},
		{"one that flaps", SetConfig{CoolDown: 5 * time.Minute, MaxStorm: time.Hour}, []call{
			{0, []Asked{ask("a", 0)}, "a"}, {60, []Asked{ask("a", 60)}, ""}, {299, []Asked{ask("a", 290)}, ""}, {300, []Asked{ask("a", 290)}, "a"},
		}, 2, 2, 0},
		{"without a beginning", SetConfig{CoolDown: time.Minute, MaxStorm: time.Hour}, []call{
			{0, []Asked{ask("a", -1)}, "a"}, {59, []Asked{ask("a", -1)}, ""}, {60, []Asked{ask("a", -1)}, "a"},
		}, 2, 1, 0},
		{"an hour's bound is of incidents", SetConfig{MaxStorm: time.Hour, MaxPerHour: 2}, []call{
			{0, []Asked{ask("a", 0), ask("b", 0), ask("c", 0)}, "a b c"}, {10, []Asked{ask("d", 1)}, "d"}, {20, []Asked{ask("e", 1)}, ""},
			{3700, []Asked{ask("e", 1)}, "e"},
		}, 5, 1, 0},
		{"dry run", SetConfig{CoolDown: time.Minute, MaxStorm: time.Hour, DryRun: []string{"webhook"}}, []call{
			{0, []Asked{ask("a", 0)}, ""}, {1, []Asked{ask("a", 0)}, ""},
		}, 0, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSet(tt.cfg, NewWebhook(DefaultWebhook()))
			for _, c := range tt.calls {
				fired, err := s.Offer(at(c.sec), c.asked)
				var names []string
				for _, f := range fired {
					names = append(names, f.Reason)
				}
				if got := strings.Join(names, " "); got != c.fired || err != nil {
					t.Errorf("second %d: fired %q (%v), want %q", c.sec, got, err, c.fired)
				}
				if fired, ongoing := s.Check(at(c.sec)); fired != nil || ongoing {
					t.Errorf("second %d: the check fired %+v, ongoing %v", c.sec, fired, ongoing)
				}
			}
			got := s.State(at(tt.calls[len(tt.calls)-1].sec))[0]
			if got.Fired != tt.fired || got.Suppressed != tt.suppressed || got.WouldHaveFired != tt.wouldHaveFired || got.Value == 0 || got.Phase != Armed {
				t.Errorf("state %+v", got)
			}
		})
	}
	off := DefaultWebhook()
	off.Enabled = false
	for _, s := range []*Set{NewSet(DefaultSet(), NewWebhook(off)), NewSet(DefaultSet())} {
		if _, err := s.Offer(at(0), []Asked{ask("a", 0)}); err != ErrWebhookDisabled {
			t.Errorf("error %v", err)
		}
	}
}

// However many different alerts come, memory is bounded, and the newest are known.
func TestOfferIsBounded(t *testing.T) {
	w := NewWebhook(DefaultWebhook())
	s := NewSet(SetConfig{CoolDown: time.Hour, MaxStorm: time.Hour}, w)
	for i := range maxTold + 10 {
		if fired, err := s.Offer(at(i), []Asked{ask(fmt.Sprint(i), i)}); err != nil || len(fired) != 1 {
			t.Fatalf("alert %d: %+v, %v", i, fired, err)
		}
	}
	if fired, err := s.Offer(at(maxTold+10), []Asked{ask(fmt.Sprint(maxTold+9), maxTold+9)}); err != nil || fired != nil || len(w.told) != maxTold {
		t.Errorf("%+v, %v, %d remembered", fired, err, len(w.told))
	}
}
