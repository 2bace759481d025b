package recorder

import (
	"time"

	"tcpcoroner/evidence"
)

// writer is the goroutine's side of a recorder: the Sink.
type writer struct {
	r        *Recorder
	source   Source
	buffer   *buffer
	governor governor
	stats    Stats
	gaps     gaps
	// started is when recording began first; stopped when it last ended.
	started, stopped time.Time
	// ticked is the last Tick, dropped the losses it knew of.
	ticked  time.Time
	dropped uint64
	// controlSince is when packets other than control ones began to be left out;
	// zero if they are recorded.
	controlSince time.Time
	// flushed tells that the source was asked to bring what it holds.
	flushed bool
	// publishedAt is when Stats was last told, monotonic nanoseconds.
	publishedAt int64
}

// publishEvery is how old Stats may be while packets come in.
const publishEvery = 50 * time.Millisecond

// Add implements Sink.
func (w *writer) Add(m *Meta, header []byte) {
	w.stats.Seen++
	w.stats.Bytes += uint64(m.WireBytes)
	var o outcome
	switch e := w.buffer.encoder; {
	case e.head.packets >= e.lookAt || e.full:
		o = w.store(m, header)
	case e.quick(m, header):
		w.stats.Kept++
		return
	default:
		o = w.stored(e.general(m, header))
	}
	switch {
	case !o.kept:
		w.stats.Discarded++
	case o.reset && !o.again:
		w.countReset(m.Path.Direction, header)
	}
}

// Count implements Sink.
func (w *writer) Count(m *Meta, header []byte) {
	w.stats.Seen++
	w.stats.Bytes += uint64(m.WireBytes)
	n, reset := Cut(header)
	w.harm().bare(w.buffer.encoder, m, header, reset)
	if n == 0 {
		w.stats.Discarded++
	} else if reset {
		w.countReset(m.Path.Direction, header)
	}
}

// Store implements Sink.
func (w *writer) Store(m *Meta, header []byte) {
	w.harm().off = true // scored when it was counted
	w.store(m, header)
	w.harm().off = false
}

func (w *writer) harm() *harm { return w.buffer.encoder.harm }

func (w *writer) store(m *Meta, header []byte) outcome {
	return w.stored(w.buffer.append(m, header, w.compress()))
}

func (w *writer) stored(o outcome) outcome {
	if o.kept {
		w.stats.Kept++
	}
	if o.again {
		w.stats.Sightings++
	}
	return o
}

// Skip implements Sink.
func (w *writer) Skip(packets uint64, first, last int64) {
	if packets == 0 {
		return
	}
	w.stats.Skipped += packets
	w.note(evidence.Gap{From: time.Unix(0, first), To: time.Unix(0, last), Lost: packets,
		Reason: "recording level " + LevelHold.String() + ": only SYN, FIN, RST and ICMP of this time were kept"})
}

func (w *writer) compress() bool { return w.governor.level == LevelFull }

func (w *writer) countReset(d evidence.Direction, header []byte) {
	w.rememberPorts(header)
	w.stats.Resets++
	switch d {
	case evidence.Received:
		w.stats.ResetsReceived++
	case evidence.Sent:
		w.stats.ResetsSent++
	}
}

func (w *writer) rememberPorts(header []byte) {
	at, _ := plain(header)
	if at == 0 {
		return
	}
	p := header[at:]
	w.stats.LastResets[w.stats.Resets%uint64(len(w.stats.LastResets))] =
		[2]uint16{uint16(p[0])<<8 | uint16(p[1]), uint16(p[2])<<8 | uint16(p[3])}
}

// Tick implements Sink.
func (w *writer) Tick() Order {
	c := w.r.cfg.Clock()
	now := time.Unix(0, c.Realtime)
	w.noteLosses(now)
	w.govern(c, now)
	w.ticked = now
	if w.harm().blind = w.governor.level >= LevelHold; w.harm().blind {
		w.harm().distrust(c.Realtime)
	}
	w.buffer.expire(c.Monotonic, w.compress())
	order := Order{Level: w.governor.level}
	if order.Level == LevelHold && len(w.r.requests) > 0 && !w.flushed {
		// The source brings what it holds and ticks again, to be answered then.
		w.flushed, order.Flush = true, true
	} else {
		w.flushed = false
		w.serve()
	}
	// A reader of Stats holds the lock: then the next Tick publishes. The writer
	// waits for nobody.
	if c.Monotonic-w.publishedAt >= int64(publishEvery) && w.r.mu.TryLock() {
		w.publishedAt = c.Monotonic
		w.publish()
		w.r.mu.Unlock()
	}
	return order
}

// govern adapts the level to the CPU time that was used.
func (w *writer) govern(c Clock, now time.Time) {
	was, used := w.governor.level, w.r.cfg.Used()
	w.stats.CPU = time.Duration(used)
	if !w.governor.look(c.Monotonic, used, w.source.Stats().Backlog) {
		return
	}
	level := w.governor.level
	w.stats.LevelSince = now
	w.note(evidence.Gap{From: now, To: now, Complete: true,
		Reason: "recording level " + was.String() + " -> " + level.String() + " (" + w.governor.why + "): " + level.Meaning()})
	if level == LevelControl {
		w.controlSince = now
	} else if g, ok := w.openGap(); ok {
		w.note(g)
		w.controlSince = time.Time{}
	}
}

// openGap is what is not recorded right now, until the last Tick.
func (w *writer) openGap() (evidence.Gap, bool) {
	return evidence.Gap{From: w.controlSince, To: w.now(),
		Reason: "recording level " + LevelControl.String() + ": " + LevelControl.Meaning()}, !w.controlSince.IsZero()
}

// hole notes the packets of a chunk that made room while older ones were frozen.
func (w *writer) hole(h *head) {
	w.note(evidence.Gap{From: time.Unix(0, h.first), To: time.Unix(0, h.last), Lost: uint64(h.packets),
		Reason: "made room for newer packets while older ones were frozen (recorder.memory)"})
}

func (w *writer) now() time.Time { return time.Unix(0, w.r.cfg.Clock().Realtime) }

func (w *writer) note(gap evidence.Gap) {
	if w.gaps.add(gap) {
		w.stats.Gaps++
	}
	w.stats.Lost += gap.Lost
}

// takeNotes takes over what Note brought.
func (w *writer) takeNotes() {
	if !w.r.mu.TryLock() {
		return // the next Tick
	}
	notes := w.r.notes
	w.r.notes = nil
	w.r.mu.Unlock()
	for _, gap := range notes {
		w.note(gap)
	}
}

func (w *writer) start(source Source) {
	now := w.now()
	if w.started.IsZero() {
		w.started, w.stats.LevelSince = now, now
	} else {
		w.note(evidence.Gap{From: w.stopped, To: now, Reason: "the recorder was not running"})
		w.harm().distrust(now.UnixNano())
	}
	w.source, w.ticked, w.dropped = source, now, source.Stats().Dropped
	w.governor.at = 0 // another thread, another CPU clock
}

func (w *writer) stop() {
	now := w.now()
	w.noteLosses(now)
	w.stopped = now
	w.serve()
	w.r.mu.Lock()
	w.publish()
	w.r.mu.Unlock()
}

// noteLosses turns what was lost since the last tick into gaps.
func (w *writer) noteLosses(now time.Time) {
	if dropped := w.source.Stats().Dropped; dropped > w.dropped {
		w.note(evidence.Gap{From: w.ticked, To: now, Lost: dropped - w.dropped,
			Reason: "the kernel's packet ring was full"})
		w.dropped = dropped
		w.harm().distrust(now.UnixNano())
	}
}

// publish hands the counters to Stats; the caller holds the lock.
func (w *writer) publish() {
	for _, gap := range w.r.notes {
		w.note(gap)
	}
	w.r.notes = nil
	if h := w.harm(); h.changed {
		w.r.harmed, h.changed = h.tally, false
	}
	b, s := w.buffer, &w.stats
	s.Evicted, s.Revoked = b.evicted, b.revoked
	s.Held, s.HeldBytes = b.held()
	s.Pinned, s.Memory = b.pinned(), w.r.cfg.Ring+encoderBytes+len(b.encoder.harm.memory)+(b.memory.total()-len(b.memory.free))*pageBytes
	s.Level, s.LevelChanges = w.governor.level, w.governor.changes
	first, last := b.bounds()
	s.Oldest, s.Newest = time.Time{}, time.Time{}
	if first != 0 {
		s.Oldest, s.Newest = time.Unix(0, first), time.Unix(0, last)
	}
	w.r.published = *s
}
