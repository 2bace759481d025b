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
	Triggers  []TriggerStatus    `json:"triggers"`
	Incidents IncidentsStatus    `json:"incidents"`
	Export    ExportStatus       `json:"export"`
	Missing   []evidence.Missing `json:"missing,omitempty"`
}

// SchemaStatus names the JSON layout of a Status.
const SchemaStatus = "tcpcoroner.status/v1"

// RecorderStatus holds the flight buffer's counters, in packets unless named.
type RecorderStatus struct {
	Interfaces []evidence.Interface `json:"interfaces"`
	Seen       uint64               `json:"seen"`
	Kept       uint64               `json:"kept"`
	Dropped    uint64               `json:"dropped_by_kernel"`
	// Lost packets found the memory pinned by freezes.
	Lost        uint64  `json:"lost"`
	Evicted     uint64  `json:"evicted"`
	Resets      uint64  `json:"resets"`
	BufferBytes uint64  `json:"buffer_bytes"`
	BudgetBytes uint64  `json:"budget_bytes"`
	HeldSeconds float64 `json:"held_seconds"`
}

// TriggerStatus is one trigger's state.
type TriggerStatus struct {
	Name       string    `json:"name"`
	State      string    `json:"state"`
	Value      float64   `json:"value"`
	Threshold  float64   `json:"threshold"`
	Baseline   float64   `json:"baseline"`
	Unit       string    `json:"unit"`
	LastFired  time.Time `json:"last_fired,omitzero"`
	Fired      uint64    `json:"fired"`
	Suppressed uint64    `json:"suppressed"`
	Why        string    `json:"why,omitempty"`
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
