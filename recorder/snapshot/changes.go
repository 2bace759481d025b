package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// Bounds of what is remembered and told about changes.
const (
	changeAge     = time.Hour
	maxChanges    = 200
	maxNamespaces = 256
	logTail       = 64 << 10 // bytes of the package log that are read
)

// state is what Watch compares.
type state struct {
	hash    string // of the ruleset; empty if it could not be read
	sysctls []evidence.Sysctl
}

// history is what changed in one network namespace.
type history struct {
	last    state
	at      time.Time
	changes []evidence.Change
}

// histories are by the namespace's inode number.
type histories struct {
	mu sync.Mutex
	of map[uint64]*history
}

// Watch notes the ruleset and the settings of the namespace, so that a later
// TakeFor can tell what changed in the hour before. It is for once a minute or
// so: changes between two calls have the time of the second.
func (t *Taker) Watch(ctx context.Context) error {
	_, err := within(t, func() (none struct{}, err error) {
		now := state{sysctls: t.sysctlValues()}
		rules, err := t.ruleset(ctx)
		if rules != nil {
			now.hash = rules.Hash
		}
		t.changes.observe(t.namespace(), t.cfg.Now(), now)
		if err != nil {
			err = fmt.Errorf("watch the firewall rules: %w", err)
		}
		return none, err
	})
	return err
}

// namespace is the inode number of this thread's network namespace; 0 if it
// cannot be read.
func (t *Taker) namespace() uint64 {
	var st unix.Stat_t
	if unix.Stat(t.cfg.ProcRoot+"/thread-self/ns/net", &st) != nil {
		return 0
	}
	return st.Ino
}

// observe notes the state of a namespace and returns what changed in the last
// hour, oldest first.
func (h *histories) observe(ns uint64, at time.Time, now state) []evidence.Change {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = map[uint64]*history{}
	}
	old := h.of[ns]
	if old == nil {
		h.forget()
		old = &history{last: now}
		h.of[ns] = old
	}
	old.changes = append(old.changes, differences(old.last, now, at)...)
	old.changes = slices.DeleteFunc(old.changes, func(c evidence.Change) bool { return at.Sub(c.Time) > changeAge })
	old.changes = old.changes[max(len(old.changes)-maxChanges, 0):]
	if now.hash == "" {
		now.hash = old.last.hash
	}
	old.last, old.at = now, at
	return slices.Clone(old.changes)
}

// forget makes room by dropping the namespace that was looked at longest ago.
func (h *histories) forget() {
	if len(h.of) < maxNamespaces {
		return
	}
	var oldest uint64
	found := false
	for ns, one := range h.of {
		if !found || one.at.Before(h.of[oldest].at) {
			oldest, found = ns, true
		}
	}
	delete(h.of, oldest)
}

// differences is what is new in now. What either does not know is no change.
func differences(before, now state, at time.Time) (all []evidence.Change) {
	if before.hash != now.hash && before.hash != "" && now.hash != "" {
		all = append(all, evidence.Change{Time: at, Kind: evidence.ChangeRuleset, What: "nftables", Before: before.hash, After: now.hash})
	}
	was := map[string]string{}
	for _, s := range before.sysctls {
		was[s.Name] = s.Value
	}
	for _, s := range now.sysctls {
		if old, ok := was[s.Name]; ok && old != s.Value {
			all = append(all, evidence.Change{Time: at, Kind: evidence.ChangeSysctl, What: s.Name, Before: old, After: s.Value})
		}
	}
	return all
}

// takeChanges puts together what changed in the last hour: settings and rules as
// far as they were watched, packages, and implicated processes that are new.
func (t *Taker) takeChanges(_ context.Context, s *evidence.Snapshot) {
	now := state{sysctls: s.Implicated.Sysctls}
	if r := s.Implicated.Rules; r != nil {
		now.hash = r.Hash
	}
	all := t.changes.observe(t.namespace(), s.Taken, now)
	since := s.Taken.Add(-changeAge)
	packages, err := t.packages(since)
	if err != nil {
		miss(s, "changes of packages", err, "")
	}
	all = append(all, packages...)
	for i := range s.Implicated.Processes {
		if p := &s.Implicated.Processes[i]; p.Started.After(since) {
			all = append(all, evidence.Change{Time: p.Started, Kind: evidence.ChangeStart,
				What: fmt.Sprintf("%s (pid %d)", clean(p.Comm), p.PID), After: p.Unit})
		}
	}
	slices.SortStableFunc(all, func(a, b evidence.Change) int { return a.Time.Compare(b.Time) })
	s.Implicated.Changes = all
}

// packages reads the tail of dpkg's log.
func (t *Taker) packages(since time.Time) ([]evidence.Change, error) {
	f, err := os.Open(t.cfg.PackageLog)
	if err != nil {
		return nil, fmt.Errorf("read the log of packages: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("read the log of packages: %w", err)
	}
	buf := make([]byte, min(size, logTail))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the log of packages: %w", err)
	}
	return parsePackages(string(buf), time.Local, since), nil
}

// parsePackages reads lines of dpkg.log: "2026-11-23 17:53:11 upgrade
// libc6:amd64 2.36-9 2.36-10", in local time. It keeps the last changes.
func parsePackages(text string, zone *time.Location, since time.Time) (all []evidence.Change) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 6 {
			continue
		}
		switch f[2] {
		case "install", "upgrade", "remove", "purge":
		default:
			continue
		}
		at, err := time.ParseInLocation(time.DateTime, f[0]+" "+f[1], zone)
		if err != nil || at.Before(since) {
			continue
		}
		all = append(all, evidence.Change{Time: at, Kind: evidence.ChangePackage, What: clean(f[3]), Before: version(f[4]), After: version(f[5])})
	}
	return all[max(len(all)-maxChanges, 0):]
}

// version is empty for dpkg's "<none>".
func version(s string) string {
	if s == "<none>" {
		return ""
	}
	return clean(s)
}
