package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter"
	"tcpcoroner/exporter/api"
	"tcpcoroner/exporter/pcapng"
	"tcpcoroner/recorder"
	"tcpcoroner/recorder/store"
	"tcpcoroner/triggers"
)

// backend answers the control socket.
type backend struct{ d *daemon }

var _ api.Backend = backend{}

// manualAfter is the post-roll of a freeze by hand: who asks, waits.
const manualAfter = time.Second

func (b backend) Freeze(ctx context.Context, reason string) (api.Frozen, error) {
	// The incident outlives the caller: a closed terminal must not lose it.
	o, joined := b.d.keeper.fire(triggers.Manual(time.Now(), reason), manualAfter)
	select {
	case <-o.done:
	case <-ctx.Done():
		return api.Frozen{}, ctx.Err()
	}
	if o.err != nil {
		return api.Frozen{}, fmt.Errorf("freeze: %w", o.err)
	}
	return api.Frozen{ID: o.inc.ID, Joined: joined}, nil
}

func (b backend) Incidents(_ context.Context, limit int) ([]evidence.Summary, error) {
	list, err := b.d.store.List(limit)
	if err != nil {
		return nil, err
	}
	var out []evidence.Summary
	for _, inc := range list {
		out = append(out, inc.Summary())
	}
	return out, nil
}

func (b backend) Incident(_ context.Context, ref string) (*evidence.Incident, error) {
	id, err := b.find(ref)
	if err != nil {
		return nil, err
	}
	return b.d.store.Get(id)
}

// find turns the store's answers into those of the command line.
func (b backend) find(ref string) (string, error) {
	id, err := b.d.store.Find(ref)
	switch {
	case errors.Is(err, store.ErrNotFound) && ref == "last":
		return "", &api.Error{Code: api.CodeNotFound, Message: "there is no incident yet",
			Hint: "`tcpcoroner freeze --reason TEXT` makes one by hand"}
	case errors.Is(err, store.ErrNotFound):
		return "", &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("incident %q is not known", ref),
			Hint: "`tcpcoroner incidents` lists those that are kept"}
	case errors.Is(err, store.ErrAmbiguous):
		return "", &api.Error{Code: api.CodeUsage, Message: err.Error(), Hint: "give more characters of the id"}
	}
	return id, err
}

func (b backend) Capture(ctx context.Context, ref string, w io.Writer) error {
	inc, err := b.Incident(ctx, ref)
	if err != nil {
		return err
	}
	select {
	case b.d.pulling <- struct{}{}:
		defer func() { <-b.d.pulling }()
	case <-ctx.Done():
		return ctx.Err()
	}
	win := inc.Window
	out, err := pcapng.NewWriter(w, inc, &win)
	if err != nil {
		return err
	}
	var failed error
	// What is left of a damaged window is still worth having; the incident tells
	// what it lacks.
	_ = recorder.Read(b.d.store.Chunks(inc.ID), win.From, win.To, func(p *evidence.Packet) bool {
		failed = out.WritePacket(p)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return out.Close()
}

func (b backend) Status(context.Context) (api.Status, error) {
	d := b.d
	s := api.Status{
		Schema: api.SchemaStatus, Version: version, PID: os.Getpid(), Started: d.started.UTC(), Host: d.host,
		Recorder: b.recorder(), Harm: harmStatus(d.recorder.Harm()), Kernel: b.kernel(), Incidents: b.incidents(), Export: b.export(),
	}
	for _, t := range d.triggers.State(time.Now()) {
		s.Triggers = append(s.Triggers, triggerStatus(t))
		if t.Phase == triggers.Unavailable && t.Namespace == "" {
			s.Missing = append(s.Missing, evidence.Missing{What: "trigger " + t.Name, Why: t.Why})
		}
	}
	s.Missing = append(s.Missing, d.prober.missing()...)
	s.Missing = append(s.Missing, d.elsewhere.missing()...)
	s.Missing = append(s.Missing, b.unread()...)
	s.Missing = append(s.Missing, kernelMissing(&s.Kernel)...)
	s.Problems = b.problems(&s)
	s.Healthy = len(s.Problems) == 0
	return s, nil
}

// unread is what the source could not do since the start. It may be long ago: no
// reason to call the recorder blind.
func (b backend) unread() (list []evidence.Missing) {
	s := b.d.recorder.Stats().Source
	if s.Malformed > 0 {
		list = append(list, evidence.Missing{What: "packets",
			Why: fmt.Sprintf("%d blocks of the kernel's ring were not as linux/if_packet.h says, and not read to their end", s.Malformed)})
	}
	if s.FilterErrors > 0 {
		list = append(list, evidence.Missing{What: "CPU budget",
			Why: fmt.Sprintf("the kernel's packet filter could not be changed %d times", s.FilterErrors)})
	}
	return list
}

// problems are what makes the recorder blind or forgetful.
func (b backend) problems(s *api.Status) (list []string) {
	if s.Incidents.Failed > 0 {
		list = append(list, fmt.Sprintf("%d incidents could not be kept: %s", s.Incidents.Failed, s.Incidents.LastError))
	}
	if b.d.recorder.Stats().Source.Polls == 0 {
		list = append(list, "the packet source has not answered yet")
	}
	if t := s.Recorder.SelfTest; t != nil && !t.OK {
		list = append(list, "self-test: "+t.Text)
	}
	return append(list, b.d.spaces.problems()...)
}

func (b backend) recorder() api.RecorderStatus {
	d := b.d
	s, spaces := d.recorder.Stats(), d.source.Attached()
	return api.RecorderStatus{
		Interfaces: interfacesIn(spaces, d.source.Interfaces()), Namespaces: spaces,
		Seen: s.Seen, Kept: s.Kept, Sightings: s.Sightings, Skipped: s.Skipped, Dropped: s.Source.Dropped,
		Evicted: s.Evicted, Resets: s.Resets, BufferBytes: uint64(s.Memory), BudgetBytes: uint64(d.sizes.memory),
		RingBytes: uint64(d.sizes.ring + len(spaces)*namespaceRing), PinnedBytes: uint64(s.Pinned), RevokedChunks: s.Revoked,
		HeldSeconds: d.recorder.Held().Seconds(), HeldPackets: s.Held, HeldBytes: uint64(s.HeldBytes),
		Level: s.Level.String(), LevelSince: s.LevelSince, LevelChanges: s.LevelChanges,
		CPUSeconds: s.CPU.Seconds(), CPUBudget: float64(d.cfg.Recorder.CPU) / 100,
		Gaps: s.Gaps, GapsLost: s.Lost, HoldSeconds: s.HoldTime.Seconds(), SelfTest: d.prober.status(),
	}
}

func harmStatus(s evidence.HarmSample) api.HarmStatus {
	h := api.HarmStatus{Harmful: map[string]uint64{}, Harmless: map[string]uint64{}, Unscored: s.Unscored, Closes: s.Closes}
	for k, n := range s.Kinds {
		kind, counts := evidence.HarmKind(k), h.Harmless
		if kind.Harmful() {
			counts = h.Harmful
		}
		counts[kind.String()] = n
	}
	return h
}

// harmMetrics count resets by kind, also those that did not occur yet.
func harmMetrics(s evidence.HarmSample) (all []exporter.Metric) {
	for k, n := range s.Kinds {
		kind := evidence.HarmKind(k)
		all = append(all, exporter.Metric{Name: "tcpcoroner.recorder.harm", Unit: "{reset}", Description: "resets by what they did",
			Counter: true, Value: float64(n), Attributes: map[string]string{"kind": kind.String(), "harmful": strconv.FormatBool(kind.Harmful())}})
	}
	return all
}

func (b backend) kernel() api.KernelStatus {
	level, s := b.d.kernel.Level(), b.d.kernel.Stats()
	k := api.KernelStatus{
		Level: level.Name, Why: level.Why, Raise: level.Raise, Hooks: level.Hooks, Lost: s.Lost,
		Untabled: s.Untabled, Evicted: s.Evicted, Undecodable: s.Undecodable, Missed: s.Missed,
		Owners: s.Owners, OwnersFailed: s.OwnersFailed, Graves: s.Graves, GravesFailed: s.GravesFailed, MapBytes: s.MapBytes,
	}
	for _, n := range s.Events {
		k.Events += n
	}
	for _, n := range s.Suppressed {
		k.Suppressed += n
	}
	for _, p := range s.Programs {
		k.CPUSeconds += p.Time.Seconds()
	}
	return k
}

// kernelMissing is what the kernel does not tell here.
func kernelMissing(k *api.KernelStatus) (list []evidence.Missing) {
	if k.Level != evidence.LevelFull {
		list = append(list, evidence.Missing{What: "kernel evidence", Why: "level " + k.Level + ": " + k.Why, Fix: k.Raise})
	}
	return append(list, kernelLosses(k)...)
}

// kernelLosses is what it should have told and did not.
func kernelLosses(k *api.KernelStatus) (list []evidence.Missing) {
	for _, loss := range []struct {
		n         uint64
		what, why string
	}{
		{k.Lost, "kernel evidence", "%d events found no room"},
		{k.Missed, "kernel evidence", "%d times a program could not run"},
		{k.Undecodable, "kernel evidence", "%d events could not be read"},
		{k.Evicted, "kernel evidence", "%d events were forgotten before their time"},
		{k.Untabled, "kernel evidence", "of %d events neither port nor reason are known"},
		{k.OwnersFailed, "owners of sockets", "%d sockets found no room in the table of owners"},
		{k.GravesFailed, "sockets that are gone", "%d sockets died unseen"},
	} {
		if loss.n > 0 {
			list = append(list, evidence.Missing{What: loss.what, Why: fmt.Sprintf(loss.why, loss.n)})
		}
	}
	return list
}

func (b backend) incidents() api.IncidentsStatus {
	d := b.d
	s := api.IncidentsStatus{Failed: d.failed.Load(), Open: d.keeper.isOpen(), Directory: d.data}
	if text := d.lastError.Load(); text != nil {
		s.LastError = *text
	}
	st, err := d.store.Stats()
	if err != nil {
		s.LastError = err.Error()
	}
	s.Stored, s.Bytes, s.Expired = st.Incidents, st.Bytes, st.Deleted
	if list, err := d.store.List(1); err == nil && len(list) > 0 {
		s.Last, s.LastTime = list[0].ID, list[0].Time.UTC()
	}
	return s
}

func (b backend) export() api.ExportStatus {
	s := b.d.exporter.Status()
	return api.ExportStatus{
		Configured: s.Configured, Endpoint: s.Endpoint, Pending: s.Pending, Sent: s.Sent,
		Failed: s.Failed, Rejected: s.Rejected, LastError: s.LastError,
	}
}

func triggerStatus(t triggers.State) api.TriggerStatus {
	return api.TriggerStatus{
		Name: t.Name, Namespace: t.Namespace, State: string(t.Phase), Value: t.Value, Threshold: t.Threshold, Baseline: t.Baseline, Unit: t.Unit,
		LastFired: t.LastFired, Fired: t.Fired, Suppressed: t.Suppressed, Why: t.Why,
		DryRun: t.DryRun, WouldHaveFired: t.WouldHaveFired,
	}
}
