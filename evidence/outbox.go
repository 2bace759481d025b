package evidence

import (
	"errors"
	"time"
)

// ErrNoIncident means that no incident is kept under an id.
var ErrNoIncident = errors.New("no such incident")

// OutboxEntry says that an incident still has to reach the tracing backend with
// one signal.
type OutboxEntry struct {
	// Signal is "traces" or "logs"; Incident is the incident's ID.
	Signal   string `json:"signal"`
	Incident string `json:"incident"`
	// Attempts counts the deliveries that failed; the next one is due at Next.
	Attempts  int       `json:"attempts"`
	Next      time.Time `json:"next_at"`
	LastError string    `json:"last_error,omitempty"`
	// Rejected entries are never tried again: the backend refused the content,
	// or it became too old. They stay to be seen until the incident is deleted.
	Rejected bool `json:"rejected,omitempty"`
}
