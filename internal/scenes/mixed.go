package scenes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Mix is what Mixed did.
type Mix struct {
	// Truths are in the order of the play. A client's port may come twice.
	Truths []Truth
	// ByScene and ByFrom count the resets, by Truth.Scene and Truth.RSTFrom.
	ByScene, ByFrom map[string]int
}

// mixSeed makes every mix the same.
const mixSeed = 20240501

// mixer is what the acts of a mix share.
type mixer struct {
	*play
	cli              *actor
	l                *sock
	closed, rejected *sock
}

// kind is one sort of reset in a mix; it makes as many resets as it returns truths.
type kind struct {
	scene string
	play  func(*mixer) []Truth
}

// kinds are those that need no process, rule or timer of their own. What
// rejects needs nft.
var kinds = []kind{
	{"close-unread", joined((*conn).closeUnread)},
	{"linger0", joined((*conn).linger0)},
	{"linger0-client", joined((*conn).linger0Client)},
	{"linger2", joined((*conn).linger2)},
	{"shutdown-late-data", joined((*conn).shutdownLateData)},
	{"close-late-data", joined((*conn).closeLateData)},
	{"half-open-listener", joined((*conn).halfOpenListener)},
	{"connect-unspec", joined((*conn).connectUnspec)},
	{"reset-in-queue", func(m *mixer) []Truth { return []Truth{m.resetInQueue(m.l, m.cli)} }},
	{"inject-exact", func(m *mixer) []Truth { return m.tidy(m.join(m.l, m.cli), (*conn).injectExact) }},
	{"closed-port", func(m *mixer) []Truth { return []Truth{m.refusal(m.closed, "NO_SOCKET")} }},
	{"reject-input", func(m *mixer) []Truth { return []Truth{m.refusal(m.rejected, "")} }},
}

// joined plays on a new connection and closes what is left of it.
func joined(play func(*conn) Truth) func(*mixer) []Truth {
	return func(m *mixer) []Truth {
		return m.tidy(m.join(m.l, m.cli), func(c *conn) []Truth { return []Truth{play(c)} })
	}
}

// tidy closes the descriptors that the play left open; the connection is dead,
// so that sends nothing. What it has closed says EBADF.
func (m *mixer) tidy(c *conn, play func(*conn) []Truth) []Truth {
	truths := play(c)
	for _, s := range []*sock{c.c, c.s} {
		m.try(s.a, request{Op: "close", FD: s.fd})
	}
	return truths
}

func (m *mixer) refusal(at *sock, reason string) Truth {
	c := m.refused(m.cli, m.st.ClientIP(), at.local, unix.ECONNREFUSED)
	c.close()
	return answered(c.local, at.local, reason, "").seen(unix.ECONNREFUSED)
}

// Mixed makes at least n resets, and at most one more, of mixed kinds, in an
// order that is random but the same each time. Resets by a firewall are among
// them if nft is there.
func Mixed(ctx context.Context, st *Stage, n int) (Mix, error) {
	m := &mixer{play: &play{ctx: ctx, st: st}}
	playable := kinds
	srv := m.actor(st.Server, "srv")
	m.cli = m.actor(st.Client, "cli")
	m.l = m.listen(srv, st.ServerIP(), backlog)
	m.closed = &sock{local: m.unlistened(srv)}
	m.rejected = &sock{local: m.unlistened(srv)}
	if _, err := exec.LookPath("nft"); err == nil {
		m.nft(st.Server, rejectRules, "input", "tcp dport "+port(m.rejected.local))
	} else {
		playable = kinds[:len(kinds)-1]
	}
	mix := Mix{ByScene: map[string]int{}, ByFrom: map[string]int{}}
	random := rand.New(rand.NewPCG(mixSeed, 0))
	for m.err == nil && len(mix.Truths) < n {
		k := playable[random.IntN(len(playable))]
		mix.add(m.run(script{name: k.scene, play: func(*play) []Truth { return k.play(m) }}))
		m.check(ctx.Err())
	}
	if m.err != nil {
		return mix, fmt.Errorf("play mixed resets, after %d: %w", len(mix.Truths), m.err)
	}
	return mix, nil
}

func (m *Mix) add(truths []Truth) {
	for _, t := range truths {
		m.Truths = append(m.Truths, t)
		m.ByScene[t.Scene]++
		m.ByFrom[t.RSTFrom]++
	}
}
