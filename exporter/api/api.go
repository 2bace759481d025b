package api

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tcpcoroner/evidence"
)

// Backend answers the calls. Implementations are safe for concurrent use.
type Backend interface {
	Status(ctx context.Context) (Status, error)
	// Freeze keeps the present window as an incident. It returns when the
	// incident is durable.
	Freeze(ctx context.Context, reason string) (Frozen, error)
	// Webhook takes what another program sends. It returns when the firings have
	// begun incidents, which are not durable yet.
	Webhook(ctx context.Context, kind WebhookKind, body []byte) (Hooked, error)
	// Incidents lists the newest first, at most limit.
	Incidents(ctx context.Context, limit int) ([]evidence.Summary, error)
	// Incident resolves ref: an id, a unique prefix of one, a trace id, or "last".
	Incident(ctx context.Context, ref string) (*evidence.Incident, error)
	// Capture writes the incident's packets as pcapng.
	Capture(ctx context.Context, ref string, w io.Writer) error
}

// Frozen is the answer to a freeze.
type Frozen struct {
	ID string `json:"id"`
	// Joined tells that the freeze became part of an incident that was open.
	Joined bool `json:"joined"`
}

// WebhookKind says how the body of a webhook is to be read.
type WebhookKind string

// The kinds: an object with a reason, and what Alertmanager sends.
const (
	WebhookPlain        WebhookKind = "plain"
	WebhookAlertmanager WebhookKind = "alertmanager"
)

// Hooked is the answer to a webhook.
type Hooked struct {
	// Asked counts what the body asks for: alerts that are firing. Of those Fired
	// became evidence, the others were HeldBack: known already, in a cool-down, too
	// many in this hour, or a dry run.
	Asked    int `json:"asked"`
	Fired    int `json:"fired"`
	HeldBack int `json:"held_back"`
}

// Code classifies an error for the caller's exit code.
type Code string

// The codes that cross the socket.
const (
	CodeNotFound Code = "not_found"
	CodeUsage    Code = "usage"
	CodeInternal Code = "internal"
	// CodeTooLarge, CodeMediaType, CodeDisabled and CodeToken refuse a webhook.
	CodeTooLarge  Code = "too_large"
	CodeMediaType Code = "media_type"
	CodeDisabled  Code = "disabled"
	CodeToken     Code = "token"
)

// Error is a failure that the daemon reports.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint says what the operator can do.
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return fmt.Sprintf("%s: %s", e.Message, e.Hint)
}

// ErrUnreachable means that no daemon answers on the socket.
var ErrUnreachable = errors.New("daemon is not reachable")

// asError keeps an *Error and wraps everything else as internal.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}
