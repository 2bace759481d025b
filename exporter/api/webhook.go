package api

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// maxWebhook bounds the body of a webhook, in bytes: some thousand alerts.
const maxWebhook = 1 << 20

// webhooks has other programs freeze. Who may open the socket is known to be allowed.
func webhooks(mux *http.ServeMux, b Backend) {
	mux.HandleFunc("POST /v1/webhook", func(w http.ResponseWriter, r *http.Request) { webhook(w, r, b, WebhookPlain) })
	mux.HandleFunc("POST /v1/webhook/alertmanager", func(w http.ResponseWriter, r *http.Request) {
		webhook(w, r, b, WebhookAlertmanager)
	})
}

// webhook answers 202 if something fired, 200 if nothing had to. To refuse with a
// status of 5xx would have Alertmanager send the same again.
func webhook(w http.ResponseWriter, r *http.Request, b Backend, kind WebhookKind) {
	body, err := webhookBody(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	h, err := b.Webhook(r.Context(), kind, body)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if h.Fired > 0 {
		w.WriteHeader(http.StatusAccepted)
	}
	_ = json.NewEncoder(w).Encode(h)
}

func webhookBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, &Error{Code: CodeMediaType, Message: fmt.Sprintf("webhook has the content type %q", r.Header.Get("Content-Type")),
			Hint: "send application/json"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("webhook is larger than %d bytes", large.Limit),
			Hint: "set max_alerts in Alertmanager's webhook_config"}
	case err != nil:
		return nil, &Error{Code: CodeUsage, Message: fmt.Sprintf("read webhook: %v", err)}
	}
	return body, nil
}

// minToken is the shortest token, in bytes.
const minToken = 16

// ListenWebhook opens a port on loopback that takes webhooks and nothing else, from
// who knows the token: for programs that cannot speak to a Unix socket.
func ListenWebhook(addr, token string, b Backend) (*Server, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("listen for webhooks on %q: give an address of loopback and a port, such as 127.0.0.1:9095", addr)
	}
	if len(token) < minToken {
		return nil, fmt.Errorf("listen for webhooks on %s: the token has %d bytes: make one of at least %d, with: openssl rand -hex 32", addr, len(token), minToken)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for webhooks on %s: %w: give it another port, or stop what has it", addr, err)
	}
	mux := http.NewServeMux()
	webhooks(mux, b)
	return &Server{listener: l, http: &http.Server{
		Handler: bearer(token, mux), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}, nil
}

// bearer lets only those pass that know the token (RFC 6750, 2.1).
func bearer(token string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			fail(w, &Error{Code: CodeToken, Message: "the token is not that of triggers.webhook.token_file", Hint: "send it as: Authorization: Bearer TOKEN"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }
