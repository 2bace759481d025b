package main

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/dustin/go-humanize"
)

// One ticker serves everything periodic: idle cost is wake-ups.
const (
	tick        = time.Second
	retainEvery = 10 * time.Minute
)

// watch samples counters, checks the triggers and talks to the service manager.
func (d *daemon) watch(ctx context.Context, ready func()) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	d.measure(time.Now()) // the base: what happens from here on counts
	d.notify(sd.SdNotifyReady + "\nSTATUS=" + d.statusLine())
	ready()
	retained := time.Now()
	d.retain(retained)
	pulse := d.pulse()
	for {
		select {
		case <-ctx.Done():
			d.notify(sd.SdNotifyStopping)
			return nil
		case now := <-ticker.C:
			d.sample(now)
			d.measure(now)
			d.walk.walk()
			d.prober.tick(now)
			d.lookAround(now)
			pulse(now)
			if now.Sub(retained) >= retainEvery {
				retained = now
				d.retain(now)
			}
		}
	}
}

// measure checks the triggers. The counters of the own namespace are sampled before.
func (d *daemon) measure(now time.Time) {
	d.elsewhere.sample(now, d.source.Attached())
	fired, ongoing := d.triggers.Check(now)
	for _, f := range fired {
		d.fire(f)
	}
	if ongoing {
		d.keeper.ongoing(now)
	}
}

// sample reads the counters once a second: for the before of an incident, and
// for the triggers.
func (d *daemon) sample(now time.Time) {
	c, err := d.taker.Counters()
	c.Time = now
	d.history.add(c, err)
	if err == nil {
		d.heap.fit(&c)
	}
	d.tracking.state, d.tracking.err = d.taker.Conntrack()
	if err == nil {
		d.timeline.Add(c, d.tracking.state)
	}
}

func (d *daemon) retain(now time.Time) {
	if _, err := d.store.Retain(now); err != nil {
		d.fault(fmt.Errorf("retain incidents: %w", err))
	}
}

// pulse returns a function that tells the service manager each second how the
// recorder is, and that it is alive: only while the capture loop advances
// (sd_notify(3), WATCHDOG=1).
func (d *daemon) pulse() func(time.Time) {
	polls := uint64(0)
	return func(time.Time) {
		s := d.recorder.Stats()
		d.notify("STATUS=" + d.statusLine())
		if s.Source.Polls != polls {
			polls = s.Source.Polls
			d.notify(sd.SdNotifyWatchdog)
		}
	}
}

// notify does nothing without a service manager.
func (d *daemon) notify(state string) { _, _ = sd.SdNotify(false, state) }

// statusLine is the recorder at one glance, for systemctl status.
func (d *daemon) statusLine() string {
	s := d.recorder.Stats()
	last := "no incident yet"
	if list, err := d.store.List(1); err == nil && len(list) > 0 {
		last = fmt.Sprintf("last incident %s (%s)", humanize.Time(list[0].Time), list[0].Trigger())
	}
	return fmt.Sprintf("recording %d interfaces, %s held, %d drops; %s; export %s",
		len(interfacesIn(d.source.Attached(), d.source.Interfaces())), d.recorder.Held().Round(time.Second), s.Source.Dropped, last, d.exportLine())
}

func (d *daemon) exportLine() string {
	s := d.exporter.Status()
	switch {
	case !s.Configured:
		return "off"
	case s.Pending > 0:
		return fmt.Sprintf("%d pending", s.Pending)
	}
	return "ok"
}
