package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/exporter/api"
)

// post sends a body with an HTTP client that knows nothing of the package.
func post(t *testing.T, c *http.Client, url, contentType, token, body string) (code int, answer string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if token != "" {
		req.Header.Set("Authorization", token)
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
	return resp.StatusCode, string(text), resp.Header
}

func TestWebhook(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	b := &backend{}
	s, err := api.Listen(socket, b)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	const json, base = "application/json", "http://localhost/v1/webhook"
	for _, tt := range []struct {
		name, url, contentType, body string
		code                         int
		answer                       string
	}{
		{"plain", base, json, "fire", 202, `{"asked":2,"fired":1,"held_back":1}`},
		{"alertmanager", base + "/alertmanager", json + "; charset=utf-8", "fire", 202, `{"asked":2,"fired":1,"held_back":1}`},
		{"nothing to do", base, json, "rest", 200, `{"asked":0,"fired":0,"held_back":0}`},
		{"bad body", base, json, "bad", 400, `"code":"usage","message":"no sense"`},
		{"disabled", base, json, "disabled", 403, `"code":"disabled"`},
		{"empty type", base, "", "fire", 415, `webhook has the content type \"\"`},
		{"form", base, "application/x-www-form-urlencoded", "fire", 415, `"hint":"send application/json"`},
		{"too large", base, json, strings.Repeat("x", 1<<20+1), 413, `webhook is larger than 1048576 bytes`},
		{"as large as may be", base, json, strings.Repeat("x", 1<<20), 200, `{"asked":0`},
		{"another kind", base + "/grafana", json, "fire", 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, answer, _ := post(t, c, tt.url, tt.contentType, "", tt.body)
			if code != tt.code || !strings.Contains(answer, tt.answer) {
				t.Errorf("%d %.200s, want %d %s", code, answer, tt.code, tt.answer)
			}
		})
	}
	h, err := api.NewClient(socket).Webhook(t.Context(), api.WebhookAlertmanager, []byte("fire"))
	if diff := cmp.Diff(api.Hooked{Asked: 2, Fired: 1, HeldBack: 1}, h); diff != "" || err != nil || b.kind != api.WebhookAlertmanager {
		t.Errorf("%v, kind %q, answer (-want +got):\n%s", err, b.kind, diff)
	}
}

// On a port there are webhooks and nothing else, for who has the token.
func TestListenWebhook(t *testing.T) {
	const token = "0123456789abcdef"
	s, err := api.ListenWebhook("127.0.0.1:0", token, &backend{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	base := "http://" + s.Addr().String()
	for _, tt := range []struct {
		token, path string
		code        int
	}{
		{"Bearer " + token, "/v1/webhook", 202},
		{"Bearer " + token, "/v1/webhook/alertmanager", 202},
		{"Bearer " + token, "/v1/freeze", 404},
		{"Bearer " + token[1:], "/v1/webhook", 401},
		{token, "/v1/webhook", 401},
		{"", "/v1/webhook", 401},
		{"", "/v1/freeze", 401},
	} {
		code, answer, header := post(t, http.DefaultClient, base+tt.path, "application/json", tt.token, "fire")
		if code != tt.code || (code == 401) != (header.Get("WWW-Authenticate") == "Bearer") || strings.Contains(answer, token) {
			t.Errorf("token %q, path %s: %d %s, want %d", tt.token, tt.path, code, answer, tt.code)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	for addr, token := range map[string]string{"0.0.0.0:0": token, "localhost:0": token, "": token, "127.0.0.1:1": "short", s.Addr().String(): token} {
		if s, err := api.ListenWebhook(addr, token, &backend{}); err == nil {
			t.Errorf("listens on %q: %v", addr, s.Addr())
		}
	}
}

// run serves until the test ends.
func run(t *testing.T, s *api.Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server ended with %v", err)
		}
	})
}

func (b *backend) Webhook(_ context.Context, kind api.WebhookKind, body []byte) (api.Hooked, error) {
	b.kind = kind
	switch string(body) {
	case "fire":
		return api.Hooked{Asked: 2, Fired: 1, HeldBack: 1}, nil
	case "bad":
		return api.Hooked{}, &api.Error{Code: api.CodeUsage, Message: "no sense"}
	case "disabled":
		return api.Hooked{}, &api.Error{Code: api.CodeDisabled, Message: "off"}
	}
	return api.Hooked{}, nil
}

// Errors of webhooks are those of the socket.
func TestWebhookErrorsAreJSON(t *testing.T) {
	c := serve(t, &backend{})
	_, err := c.Webhook(t.Context(), api.WebhookPlain, []byte("bad"))
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeUsage {
		t.Errorf("error %v", err)
	}
}
