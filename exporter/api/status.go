package api

import (
	"time"

	"tcpcoroner/evidence"
)

// Status is the daemon's state at a glance.
type Status struct {
	Schema  string        `json:"schema"`
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
	Host    evidence.Host `json:"host"`
	// Healthy is false where the daemon is blind; Problems says why.
	Healthy   bool               `json:"healthy"`
	Problems  []string           `json:"problems,omitempty"`
	Recorder  RecorderStatus     `json:"recorder"`
	Harm      HarmStatus         `json:"harm"`
	Kernel    KernelStatus       `json:"kernel"`
	Triggers  []TriggerStatus    `json:"triggers"`
	Incidents IncidentsStatus    `json:"incidents"`
	Export    ExportStatus       `json:"export"`
	Missing   []evidence.Missing `json:"missing,omitempty"`
}

// SchemaStatus names the JSON layout of a Status.
const SchemaStatus = "tcpcoroner.status/v1"

// RecorderStatus holds the flight buffer's counters since the daemon's start, in
// packets unless named.
type RecorderStatus struct {
	Interfaces []evidence.Interface `json:"interfaces"`
	// Namespaces are those that are recorded beside the daemon's own.
	Namespaces []evidence.Namespace `json:"namespaces,omitempty"`
	Seen       uint64               `json:"seen"`
	Kept       uint64               `json:"kept"`
	// Sightings are those of the kept that showed a packet again, on another
	// interface or on its way out.
	Sightings uint64 `json:"sightings"`
	// Skipped packets were given up to keep the CPU budget; Dropped ones found no
	// room in the kernel's ring.
	Skipped uint64 `json:"skipped"`
	Dropped uint64 `json:"dropped_by_kernel"`
	Evicted uint64 `json:"evicted"`
	// Resets are TCP segments with the RST bit, each counted once.
	Resets uint64 `json:"resets"`
	// Gaps counts the stretches of time in which packets may be missing and the
	// changes of level, GapsLost the packets that are known to be missing in them.
	Gaps     uint64 `json:"gaps"`
	GapsLost uint64 `json:"gaps_lost"`
	// Level is how much is recorded, since LevelSince: "full", "plain", "hold" or
	// "control"; see tcpcoroner.yaml(5), recorder.cpu. LevelChanges counts.
	Level        string    `json:"level"`
	LevelSince   time.Time `json:"level_since,omitzero"`
	LevelChanges uint64    `json:"level_changes"`
	// CPUSeconds is the CPU time of the recording thread, and CPUBudget what it may
	// use, as a part of one core (0.02 is 2 %); 0 is no bound.
	CPUSeconds float64 `json:"cpu_seconds"`
	CPUBudget  float64 `json:"cpu_budget"`
	// BufferBytes of BudgetBytes (recorder.memory) are taken: by history, frozen
	// chunks, the open chunk, and RingBytes of it by the kernel's rings.
	BufferBytes uint64 `json:"buffer_bytes"`
	BudgetBytes uint64 `json:"budget_bytes"`
	RingBytes   uint64 `json:"ring_bytes"`
	// HeldPackets are in memory and span HeldSeconds; the sealed ones of them take
	// HeldBytes.
	HeldPackets uint64  `json:"held_packets"`
	HeldBytes   uint64  `json:"held_bytes"`
	HeldSeconds float64 `json:"held_seconds"`
	// PinnedBytes are wanted by freezes; RevokedChunks were, and made room for newer
	// packets.
	PinnedBytes   uint64 `json:"pinned_bytes"`
	RevokedChunks uint64 `json:"revoked_chunks"`
	// HoldSeconds is how long the last freeze took until nothing of it could be lost
	// any more.
	HoldSeconds float64 `json:"hold_seconds"`
	// SelfTest is the last one; nil before the first, and if there are none.
	SelfTest *SelfTestStatus `json:"self_test,omitempty"`
}

// HarmStatus sorts the resets since the daemon's start by what they did to the people
// behind them: all kinds, by name, those that did not occur with 0.
type HarmStatus struct {
	Harmful  map[string]uint64 `json:"harmful"`
	Harmless map[string]uint64 `json:"harmless"`
	// Unscored resets were too odd to be sorted, such as those in tunnels.
	Unscored uint64 `json:"unscored"`
	// Closes counts connections that ended, with FIN or RST, each once.
	Closes uint64 `json:"closes"`
}

// KernelStatus tells what the kernel itself tells of resets, by eBPF.
type KernelStatus struct {
	// Level is "full", "reasons", "tuples" or "packets", Why what holds it back and
	// Raise what would lift it; Hooks are the places that are or are not watched.
	Level string                `json:"level"`
	Why   string                `json:"why,omitempty"`
	Raise string                `json:"raise,omitempty"`
	Hooks []evidence.KernelHook `json:"hooks,omitempty"`
	// Events were described since the daemon's start, Suppressed ones came too fast
	// and were counted, Lost ones found no room. Untabled are suppressed ones whose
	// port and reason are not known, Evicted were forgotten before their time,
	// Undecodable could not be read, and Missed found their program at work.
	Events      uint64 `json:"events"`
	Suppressed  uint64 `json:"suppressed"`
	Lost        uint64 `json:"lost"`
	Untabled    uint64 `json:"untabled"`
	Evicted     uint64 `json:"evicted"`
	Undecodable uint64 `json:"undecodable"`
	Missed      uint64 `json:"missed"`
	// Owners are the live sockets whose process is known, OwnersFailed those that
	// found no room, Graves the sockets that were seen to die, GravesFailed those of
	// them that nobody remembers.
	Owners       uint64 `json:"owners"`
	OwnersFailed uint64 `json:"owners_failed"`
	Graves       uint64 `json:"graves"`
	GravesFailed uint64 `json:"graves_failed"`
	// MapBytes is memory of the kernel; CPUSeconds the programs' run time, 0 unless
	// it is measured (sysctl kernel.bpf_stats_enabled).
	MapBytes   uint64  `json:"map_bytes"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

// SelfTestStatus tells whether capture and counters saw a reset that was made on
// loopback to see whether they do.
type SelfTestStatus struct {
	// Time is when the reset was made.
	Time time.Time `json:"time,omitzero"`
	OK   bool      `json:"ok"`
	// Text says what was seen, or what was not.
	Text string `json:"text"`
}

// TriggerStatus is one trigger's state.
type TriggerStatus struct {
	Name string `json:"name"`
	// Namespace is the label of another network namespace than the daemon's own.
	Namespace  string    `json:"namespace,omitempty"`
	State      string    `json:"state"`
	Value      float64   `json:"value"`
	Threshold  float64   `json:"threshold"`
	Baseline   float64   `json:"baseline"`
	Unit       string    `json:"unit"`
	LastFired  time.Time `json:"last_fired,omitzero"`
	Fired      uint64    `json:"fired"`
	Suppressed uint64    `json:"suppressed"`
	// DryRun counts what would have fired, in WouldHaveFired.
	DryRun         bool   `json:"dry_run,omitempty"`
	WouldHaveFired uint64 `json:"would_have_fired,omitempty"`
	Why            string `json:"why,omitempty"`
}

// IncidentsStatus tells what is kept.
type IncidentsStatus struct {
	Stored   int       `json:"stored"`
	Bytes    uint64    `json:"bytes"`
	Last     string    `json:"last,omitempty"`
	LastTime time.Time `json:"last_time,omitzero"`
	// Failed counts incidents that could not be stored; Expired those that
	// retention removed.
	Failed    uint64 `json:"failed"`
	Expired   uint64 `json:"expired"`
	LastError string `json:"last_error,omitempty"`
	Open      bool   `json:"open"`
	Directory string `json:"directory"`
}

// ExportStatus tells how the tracing backend is doing.
type ExportStatus struct {
	Configured bool   `json:"configured"`
	Endpoint   string `json:"endpoint,omitempty"`
	Pending    int    `json:"pending"`
	Sent       uint64 `json:"sent"`
	Failed     uint64 `json:"failed"`
	Rejected   uint64 `json:"rejected"`
	LastError  string `json:"last_error,omitempty"`
}
