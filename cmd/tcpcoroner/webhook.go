package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/api"
	"tcpcoroner/recorder/logs"
	"tcpcoroner/triggers"
)

// Webhook freezes for what other programs tell, under the bounds of all triggers.
func (b backend) Webhook(_ context.Context, kind api.WebhookKind, body []byte) (api.Hooked, error) {
	parse := triggers.ParseAsked
	if kind == api.WebhookAlertmanager {
		parse = triggers.ParseAlertmanager
	}
	asked, err := parse(body)
	if err != nil {
		return api.Hooked{}, &api.Error{Code: api.CodeUsage, Message: err.Error()}
	}
	now := time.Now()
	for i := range asked {
		f := &asked[i].Firing
		f.Time = momentOf(asked[i].Began, now, time.Duration(b.d.cfg.Window.Max))
		f.Reason = logs.Redact(f.Reason)
	}
	fired, err := b.d.triggers.Offer(now, asked)
	if errors.Is(err, triggers.ErrWebhookDisabled) {
		return api.Hooked{}, &api.Error{Code: api.CodeDisabled, Message: err.Error(), Hint: "set triggers.webhook.enabled to true, and restart the daemon"}
	}
	for _, f := range fired {
		b.d.fire(f)
	}
	return api.Hooked{Asked: len(asked), Fired: len(fired), HeldBack: len(asked) - len(fired)}, nil
}

// momentOf is the time that a firing is of: when the thing began, but no longer ago
// than an incident may last, for that is how far back its evidence reaches.
func momentOf(began, now time.Time, reach time.Duration) time.Time {
	switch {
	case began.IsZero() || began.After(now):
		return now
	case now.Sub(began) > reach:
		return now.Add(-reach)
	}
	return began
}

// openHook opens the port for webhooks, if one is wanted.
func (d *daemon) openHook() (err error) {
	c := d.cfg.Triggers.Webhook
	if !c.Enabled || c.Listen == "none" {
		return nil
	}
	token, err := readToken(c.TokenFile)
	if err != nil {
		return fmt.Errorf("triggers.webhook.token_file: %w", err)
	}
	if d.hook, err = api.ListenWebhook(c.Listen, token, backend{d}); err != nil {
		return fmt.Errorf("triggers.webhook.listen: %w", err)
	}
	return nil
}

// runHook serves the port until ctx ends.
func (d *daemon) runHook(ctx context.Context) error {
	if d.hook == nil {
		<-ctx.Done()
		return nil
	}
	return d.hook.Run(ctx)
}

// readToken reads a secret that not everybody may read.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%w: make it, with: openssl rand -hex 32", err)
	}
	const others = 0o007
	if info.Mode().Perm()&others != 0 {
		return "", fmt.Errorf("%s has mode %04o, everybody may read or write it: chmod 0640 it, and chgrp it to tcpcoroner", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	return string(bytes.TrimSpace(text)), err
}

// fire makes evidence of a firing. Its post-roll begins now, whenever it was.
func (d *daemon) fire(f evidence.Firing) {
	_, joined := d.keeper.fire(f, d.keeper.after+max(time.Since(f.Time), 0))
	// Without the id: nobody is told of an incident that is not durable yet.
	d.log.Info("trigger fired", "trigger", f.Trigger, "reason", f.Reason, "joined", joined)
}
