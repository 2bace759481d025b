package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"tcpcoroner/evidence"
)

// Client talks to a daemon over its Unix socket. It implements Backend.
type Client struct {
	socket string
	http   *http.Client
}

var _ Backend = (*Client)(nil)

// NewClient makes a client; nothing is dialled before the first call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "/v1/status", &s)
}

// Freeze asks for an incident; it waits until that is durable.
func (c *Client) Freeze(ctx context.Context, reason string) (f Frozen, err error) {
	body, err := json.Marshal(map[string]string{"reason": reason})
	if err != nil {
		return f, err
	}
	return f, c.call(ctx, http.MethodPost, "/v1/freeze", bytes.NewReader(body), decode(&f))
}

// Webhook sends a body as another program would.
func (c *Client) Webhook(ctx context.Context, kind WebhookKind, body []byte) (h Hooked, err error) {
	path := "/v1/webhook"
	if kind != WebhookPlain {
		path += "/" + string(kind)
	}
	return h, c.call(ctx, http.MethodPost, path, bytes.NewReader(body), decode(&h))
}

// Incidents lists the newest first; limit 0 means all.
func (c *Client) Incidents(ctx context.Context, limit int) (l []evidence.Summary, err error) {
	return l, c.get(ctx, "/v1/incidents?limit="+strconv.Itoa(limit), &l)
}

// Incident gets one incident whole, without its packets.
func (c *Client) Incident(ctx context.Context, ref string) (*evidence.Incident, error) {
	inc := new(evidence.Incident)
	return inc, c.get(ctx, "/v1/incidents/"+url.PathEscape(ref), inc)
}

// Capture writes the incident's pcapng to w.
func (c *Client) Capture(ctx context.Context, ref string, w io.Writer) error {
	return c.call(ctx, http.MethodGet, "/v1/incidents/"+url.PathEscape(ref)+"/pcapng", nil, func(r io.Reader) error {
		if _, err := io.Copy(w, r); err != nil {
			return fmt.Errorf("copy capture: %w", err)
		}
		return nil
	})
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, decode(into))
}

func decode(into any) func(io.Reader) error {
	return func(r io.Reader) error {
		if err := json.NewDecoder(r).Decode(into); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		return nil
	}
}

func (c *Client) call(ctx context.Context, method, path string, body io.Reader, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://tcpcoroner"+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return reported(resp)
	}
	return read(resp.Body)
}

// unreachable explains a failed dial by its commonest causes.
func (c *Client) unreachable(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: no permission for %s: use sudo or join the group tcpcoroner", ErrUnreachable, c.socket)
	}
	return fmt.Errorf("%w: nothing answers on %s: start it with `systemctl start tcpcoroner` or `tcpcoroner run`, or give --socket the path it uses",
		ErrUnreachable, c.socket)
}

func reported(resp *http.Response) error {
	e := new(Error)
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil || e.Message == "" {
		return fmt.Errorf("the daemon answered %s", resp.Status)
	}
	return e
}
