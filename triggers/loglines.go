package triggers

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"tcpcoroner/evidence"
)

// LogsConfig is the configuration of the trigger "logs".
type LogsConfig struct {
	RiseConfig `yaml:",inline"`
	// Patterns are regular expressions (re2 syntax) of lines that count.
	Patterns []string `yaml:"patterns"`
}

// DefaultLogs fires at 3 lines about resets in 10 s if that is four times the usual.
func DefaultLogs() LogsConfig {
	return LogsConfig{
		RiseConfig: RiseConfig{Enabled: true, Window: 10 * time.Second, Threshold: 3, Factor: 4},
		Patterns:   []string{`(?i)connection reset by peer`, `\bECONNRESET\b`, `\berrno[=: ]+104\b`},
	}
}

// Validate names the first field that cannot be.
func (c LogsConfig) Validate() error {
	if !c.Enabled {
		return nil
	}
	if err := c.RiseConfig.Validate("logs"); err != nil {
		return err
	}
	_, err := NewLogMatcher(c.Patterns)
	return err
}

// LogMatcher tells which lines count.
type LogMatcher struct{ patterns []*regexp.Regexp }

// NewLogMatcher compiles patterns.
func NewLogMatcher(patterns []string) (*LogMatcher, error) {
	m := &LogMatcher{}
	for i, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("logs.patterns[%d] is %q: %w", i, p, err)
		}
		m.patterns = append(m.patterns, re)
	}
	return m, nil
}

// maxLine bounds what of a line is looked at, in bytes.
const maxLine = 4 << 10

// Match tells whether a line counts. What is beyond its first 4 KiB does not.
func (m *LogMatcher) Match(line string) bool {
	line = line[:min(len(line), maxLine)]
	for _, re := range m.patterns {
		if re.MatchString(line) {
			return true
		}
	}
	return false
}

// LogMatches are lines that matched since the call before.
type LogMatches struct {
	Count int
	// Examples are some of them, redacted: they end up in the firing.
	Examples []string
}

// Logs fires when applications write about resets.
type Logs struct {
	cfg     LogsConfig
	read    func() (LogMatches, error)
	sum     window
	usual   baseline
	example string
	seen    time.Time
}

// NewLogs makes the trigger; read returns the lines that are new and match.
func NewLogs(cfg LogsConfig, read func() (LogMatches, error)) *Logs {
	return &Logs{cfg: cfg, read: read, sum: window{span: cfg.Window}}
}

// Name is "logs".
func (t *Logs) Name() string { return "logs" }

// Enabled tells whether the configuration wants it checked.
func (t *Logs) Enabled() bool { return t.cfg.Enabled }

// Check counts the lines of the window.
func (t *Logs) Check(now time.Time, storm bool) (Reading, error) {
	m, err := t.read()
	if err != nil {
		return Reading{}, fmt.Errorf("read log lines: %w", err)
	}
	left := t.sum.add(now, float64(m.Count))
	if !storm {
		t.usual.learn(left, t.cfg.Window)
	}
	if len(m.Examples) > 0 {
		t.example, t.seen = shorten(m.Examples[0]), now
	} else if now.Sub(t.seen) >= t.cfg.Window {
		t.example = ""
	}
	limit := max(t.cfg.Threshold, t.cfg.Factor*t.usual.value)
	r := Reading{
		Firing: evidence.Firing{Trigger: t.Name(), Time: now, Unit: "{line}",
			Value: math.Round(t.sum.sum), Threshold: tenth(limit), Baseline: tenth(t.usual.value),
			Expression: fmt.Sprintf("log lines about resets in %s >= %g and >= %g x baseline",
				seconds(t.cfg.Window), t.cfg.Threshold, t.cfg.Factor)},
		Over: t.sum.sum >= limit, Calm: t.sum.sum < limit/2,
	}
	if r.Over {
		r.Firing.Reason = fmt.Sprintf("%.0f log lines about resets in %s: the threshold is %g, usual are %g",
			t.sum.sum, seconds(t.cfg.Window), r.Firing.Threshold, r.Firing.Baseline)
		if t.example != "" {
			r.Firing.Reason += fmt.Sprintf("; such as %q", t.example)
		}
	}
	return r, nil
}

// maxExample bounds a line in a sentence, in bytes.
const maxExample = 200

func shorten(s string) string {
	if len(s) <= maxExample {
		return s
	}
	return strings.ToValidUTF8(s[:maxExample], "") + "..."
}
