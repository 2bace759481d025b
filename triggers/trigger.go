// Package triggers decides when a moment is worth keeping: resets that did harm, a
// connection-tracking table near its maximum, an accept queue that overflows, and
// whatever else breaks connections.
//
// Each trigger only measures; when a crossing becomes a firing, when a storm
// ends and when the next one may fire is decided by Set, in one place. The
// package reads nothing of the host itself: its inputs are functions. It
// freezes, stores and judges nothing.
package triggers

import (
	"time"

	"tcpcoroner/evidence"
)

// Reading is what a trigger measured at one check.
type Reading struct {
	// Firing states the numbers. Reason is written only if Over is set.
	Firing evidence.Firing
	// Over tells that the value is over the threshold, Calm that it is back
	// below the level at which the trigger is armed again. Between the two
	// levels (hysteresis) neither is set.
	Over, Calm bool
	// Steady tells that the condition is a level that holds, perhaps for hours,
	// and that nothing happens while it does: its incident need not stay open.
	Steady bool
}

// Trigger measures one condition. A Trigger is used by one goroutine.
type Trigger interface {
	// Name is the trigger's name, as in evidence.Firing.
	Name() string
	// Enabled tells whether the configuration wants it checked.
	Enabled() bool
	// Check measures, about once a second. storm tells that what is measured now
	// belongs to a storm and must not be learned as usual. An error means that the
	// reading could not be had; the trigger is then unavailable, not broken. now
	// should carry a monotonic clock reading, or a clock step bends the windows.
	Check(now time.Time, storm bool) (Reading, error)
}

// NameManual is the trigger of a freeze that a person asked for.
const NameManual = "manual"

// Manual is the firing of a freeze that a person asked for. It passes by the
// Set: whoever asks gets one, cool-down or not.
func Manual(now time.Time, reason string) evidence.Firing {
	if reason == "" {
		reason = "asked for by hand"
	}
	return evidence.Firing{Trigger: NameManual, Time: now, Expression: "asked for by hand", Reason: reason}
}
