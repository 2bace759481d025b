package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// messageID marks an incident in the journal; `journalctl MESSAGE_ID=...` finds
// all of them, and the message catalog explains it (systemd.journal-fields(7)).
const messageID = "0b6b2c3f0d5c4a6a9f1e7a5c8d3e2b41"

// announce tells of a durable incident: to the journal with its fields where
// stderr goes there, otherwise as a line on stderr.
func announce(log *slog.Logger, inc *evidence.Incident) {
	c := inc.Verdict.Claim()
	text := fmt.Sprintf("incident %s: %s [%s]; see: tcpcoroner show %s", inc.ID, c.Sentence, c.Confidence, inc.ID)
	fields := map[string]string{
		"MESSAGE_ID":                messageID,
		"TCPCORONER_INCIDENT_ID":    inc.ID,
		"TCPCORONER_TRACE_ID":       inc.TraceID,
		"TCPCORONER_TRIGGER":        inc.Trigger(),
		"TCPCORONER_ORIGIN":         string(c.Origin),
		"TCPCORONER_MECHANISM":      string(c.Mechanism),
		"TCPCORONER_CONFIDENCE":     string(c.Confidence),
		"TCPCORONER_VERDICT":        c.Sentence,
		"TCPCORONER_FLOWS":          fmt.Sprint(inc.FlowsImplicated),
		"TCPCORONER_WINDOW_PACKETS": fmt.Sprint(inc.Window.PacketCount),
	}
	if toJournal, err := journal.StderrIsJournalStream(); err == nil && toJournal && journal.Send(text, journal.PriWarning, fields) == nil {
		return
	}
	log.Warn(text, "trigger", inc.Trigger(), "origin", c.Origin, "mechanism", c.Mechanism)
}

// thisHost reads who we are; what cannot be read stays empty.
func thisHost() evidence.Host {
	h := evidence.Host{ID: machineID()}
	h.Name, _ = os.Hostname()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &st) == nil {
		h.NetNS = st.Ino
	}
	return h
}

// machineID is stable across restarts (machine-id(5)).
func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
