// Package evidence holds the nouns that every other package speaks: what was
// seen (Packet, Segment, Window, Snapshot), what it means (Finding, Verdict),
// and what is kept (Incident).
//
// It uses the standard library only, does no I/O and starts no goroutine, so
// that a verdict can be judged, tested and re-derived anywhere.
package evidence
