package main

import (
	"context"
	"fmt"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter"
)

// aroundEvery is how often the daemon looks at what changes slowly: interfaces'
// losses, and network namespaces.
const aroundEvery = 10 * time.Second

// around is what the last look around saw.
type around struct {
	at     time.Time
	losses map[uint32]uint64
	// watched is when ruleset and settings were last remembered.
	watched time.Time
}

// watchEvery is how often ruleset and settings are looked at, so that an incident
// can tell what changed.
const watchEvery = time.Minute

// watchChanges leaves to the snapshot of an incident to tell what it could not read.
func (d *daemon) watchChanges() {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	_ = d.taker.Watch(ctx)
}

// lookAround notes what interfaces lost since the last look as gaps, and attaches
// namespaces that appeared.
func (d *daemon) lookAround(now time.Time) {
	if now.Sub(d.around.at) < aroundEvery {
		return
	}
	d.noteInterfaceLosses(now)
	d.spaces.look()
	d.watchKernel()
	d.around.at = now
	if now.Sub(d.around.watched) >= watchEvery {
		d.around.watched = now
		d.watchChanges()
	}
}

// noteInterfaceLosses: what a network card had no room for, no capture can see.
func (d *daemon) noteInterfaceLosses(now time.Time) {
	links, err := d.links.get()
	if err != nil {
		return // the snapshot of an incident tells why
	}
	losses := make(map[uint32]uint64, len(links))
	for _, l := range links {
		losses[l.Index] = l.RxMissed
		before, known := d.around.losses[l.Index]
		if known && l.RxMissed > before {
			d.recorder.Note(evidence.Gap{From: d.around.at, To: now, Lost: l.RxMissed - before,
				Reason: fmt.Sprintf("interface %s had no room for received packets (rx_missed_errors)", l.Name)})
		}
	}
	d.around.losses = losses
}

// sentResets is the kernel's count of the resets that it sent.
func (d *daemon) sentResets() (uint64, bool) {
	c, err := d.history.latest()
	v, ok := c.Values["Tcp.OutRsts"]
	return v, ok && err == nil
}

// metrics are what is sent with OTLP.
func (d *daemon) metrics() []exporter.Metric {
	s := d.recorder.Stats()
	count := func(name, unit, text string, v uint64) exporter.Metric {
		return exporter.Metric{Name: "tcpcoroner.recorder." + name, Unit: unit, Description: text, Counter: true, Value: float64(v)}
	}
	gauge := func(name, unit, text string, v float64) exporter.Metric {
		return exporter.Metric{Name: "tcpcoroner.recorder." + name, Unit: unit, Description: text, Value: v}
	}
	healthy := 0.0
	if t := d.prober.status(); t == nil || t.OK {
		healthy = 1
	}
	kernel := backend{d}.kernel()
	return append(harmMetrics(d.recorder.Harm()),
		count("packets", "{packet}", "packets seen", s.Seen),
		count("resets", "{packet}", "TCP segments with RST, each once", s.Resets),
		count("dropped", "{packet}", "packets that the kernel's ring had no room for", s.Source.Dropped),
		count("skipped", "{packet}", "packets given up to keep the CPU budget", s.Skipped),
		count("gaps", "{gap}", "gaps noted in the recording", s.Gaps),
		count("level.changes", "{change}", "changes of the recording level", s.LevelChanges),
		gauge("level", "1", "recording level: 0 full, 1 plain, 2 hold, 3 control", float64(s.Level)),
		gauge("held", "s", "time between the oldest and the newest packet in memory", s.Newest.Sub(s.Oldest).Seconds()),
		gauge("memory", "By", "memory in use of recorder.memory", float64(s.Memory)),
		gauge("cpu", "s", "CPU time of the recording thread", s.CPU.Seconds()),
		count("kernel.events", "{event}", "events that the kernel told of resets", kernel.Events),
		count("kernel.suppressed", "{event}", "events of the kernel that were only counted", kernel.Suppressed),
		count("kernel.lost", "{event}", "events of the kernel that found no room", kernel.Lost),
		count("kernel.untabled", "{event}", "counted events of the kernel whose port and reason are not known", kernel.Untabled),
		count("kernel.evicted", "{event}", "events of the kernel that were forgotten before their time", kernel.Evicted),
		count("kernel.undecodable", "{event}", "events of the kernel that could not be read", kernel.Undecodable),
		count("kernel.missed", "{run}", "runs of a program in the kernel that did not take place", kernel.Missed),
		count("kernel.owners.failed", "{socket}", "sockets whose owner found no room", kernel.OwnersFailed),
		count("kernel.graves.failed", "{socket}", "sockets that died and are not remembered", kernel.GravesFailed),
		gauge("self_test", "1", "1 if the last self-test was seen", healthy),
	)
}
