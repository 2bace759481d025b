package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tcpcoroner/internal/netlab"
)

// hookBody is what Alertmanager sends of alerts that began a while ago.
func hookBody(began time.Time, names ...string) string {
	var alerts []string
	for _, name := range names {
		alerts = append(alerts, fmt.Sprintf(`{"status":"firing","labels":{"alertname":%q,"password":"hunter2"},"startsAt":%q}`, name, began.Format(time.RFC3339Nano)))
	}
	return `{"version":"4","status":"firing","alerts":[{"status":"resolved","labels":{"alertname":"Over"}},` + strings.Join(alerts, ",") + `]}`
}

// post sends a webhook from inside a namespace's address or over a socket.
func post(t *testing.T, dial func(context.Context, string, string) (net.Conn, error), path, token, body string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Alerts freeze: one incident for those of one message, nothing for what is told
// again or resolved, over the socket as on the port.
func TestWebhooks(t *testing.T) {
	netlab.NeedRoot(t)
	t.Parallel()
	ns, dir := netlab.NewNS(t), t.TempDir()
	ns.IP(t, "link", "set", "lo", "up")
	l := ns.Listen(t, "127.0.0.1:0")
	port := l.Addr().String()
	l.Close()
	const token = "a-token-of-this-test"
	secret, config := filepath.Join(dir, "token"), filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(secret, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, "window: {before: 2s, after: 1s, max: 2s}\ntriggers:\n  webhook: {listen: %q, token_file: %s}\n", port, secret), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startDaemon(t, ns, dir, nil, "--config", config)
	socket := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	}
	loopback := func(context.Context, string, string) (net.Conn, error) { return ns.TryDial(port) }
	began := time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		dial              func(context.Context, string, string) (net.Conn, error)
		path, token, body string
		code              int
		answer            string
	}{
		{socket, "/v1/webhook/alertmanager", "", hookBody(began, "A", "B"), 202, `{"asked":2,"fired":2,"held_back":0}`},
		{loopback, "/v1/webhook/alertmanager", token, hookBody(began, "A", "B"), 200, `{"asked":2,"fired":0,"held_back":2}`},
		{loopback, "/v1/webhook/alertmanager", "another", hookBody(began, "C"), 401, "token"},
		{loopback, "/v1/incidents", token, "", 404, ""},
		{loopback, "/v1/webhook", token, `{"reason":"A"}`, 202, `"fired":1`},
		{socket, "/v1/webhook", "", `{"note":"A"}`, 400, "it has no reason"},
		{socket, "/v1/webhook/alertmanager", "", `{"status":"resolved","alerts":[{"labels":{"alertname":"A"}}]}`, 200, `{"asked":0`},
	} {
		if code, answer := post(t, tt.dial, tt.path, tt.token, tt.body); code != tt.code || !strings.Contains(answer, tt.answer) {
			t.Errorf("POST %s: %d %s, want %d %s", tt.path, code, answer, tt.code, tt.answer)
		}
	}
	list := p.awaitIncidents(t, 1, 20*time.Second)
	inc, err := p.client().Incident(t.Context(), list[len(list)-1].ID)
	if err != nil {
		t.Fatal(err)
	}
	f := inc.Firings[0]
	if f.Trigger != "webhook" || !strings.HasPrefix(f.Reason, `A {password=`) || strings.Contains(f.Reason, "hunter2") || inc.Joined == 0 {
		t.Errorf("firing %+v, %d joined", f, inc.Joined)
	}
	if reach := inc.Closed.Sub(f.Time); reach < 2*time.Second || reach > time.Minute {
		t.Errorf("of an alert of an hour ago the incident is from %v before its end", reach)
	}
	await(t, 20*time.Second, "alerts among the triggers", func() bool {
		out, _, code := cli(t, "triggers", "--socket", p.socket)
		return code == exitOK && strings.Contains(strings.Join(strings.Fields(out), " "), "webhook armed 5 1 0 alert 3 2 ")
	})
	p.stop(t)
}

func TestMomentOf(t *testing.T) {
	now := time.Unix(1790000000, 0)
	for _, tt := range []struct{ began, want time.Time }{
		{time.Time{}, now}, {now.Add(time.Second), now}, {now.Add(-time.Second), now.Add(-time.Second)}, {now.Add(-time.Hour), now.Add(-time.Minute)},
	} {
		if got := momentOf(tt.began, now, time.Minute); !got.Equal(tt.want) {
			t.Errorf("began %v: %v, want %v", tt.began, got, tt.want)
		}
	}
}

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := readToken(path); err == nil || !strings.Contains(err.Error(), "openssl rand -hex 32") {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(path, []byte(" secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readToken(path); err == nil || !strings.Contains(err.Error(), "mode 0644") || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if got, err := readToken(path); got != "secret" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A port that cannot be is told by its key.
func TestOpenHook(t *testing.T) {
	d := &daemon{cfg: defaultConfig()}
	if err := d.openHook(); err != nil || d.hook != nil {
		t.Errorf("by default: %v", err)
	}
	c := &d.cfg.Triggers.Webhook
	c.Listen, c.TokenFile = "127.0.0.1:0", filepath.Join(t.TempDir(), "none")
	if err := d.openHook(); err == nil || !strings.HasPrefix(err.Error(), "triggers.webhook.token_file: ") {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(c.TokenFile, []byte(strings.Repeat("x", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Listen = "0.0.0.0:9095"
	if err := d.openHook(); err == nil || !strings.HasPrefix(err.Error(), "triggers.webhook.listen: ") {
		t.Errorf("error %v", err)
	}
}
