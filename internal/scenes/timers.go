package scenes

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// timerScripts are resets, and silent ends, by the kernel's timers.
var timerScripts = []script{
	{"keepalive", "keepalive probes stay unanswered; later the client sends", nil, keepalive},
	{"keepalive-user-timeout", "TCP_USER_TIMEOUT ends the connection at a keepalive probe", nil, keepaliveUserTimeout},
	{"user-timeout", "TCP_USER_TIMEOUT ends the connection with 100 bytes unacknowledged, without a reset; later the client sends", nil, userTimeout},
	{"orphan-limit", "a closed socket with unacknowledged data is over tcp_max_orphans", []string{NeedsVM}, orphanLimit},
}

// silence cuts the path and waits until the server's timers have given up, and the
// router has thrown away all that the server sent meanwhile: its last segment may
// still be waiting there.
func (c *conn) silence() {
	p, router := c.p, c.p.st.Router
	sent, lost := p.counter(p.st.Server, "Tcp.OutSegs"), p.discards(router)
	p.forward(false)
	c.s.dies(unix.ETIMEDOUT)
	p.until("the router has lost what the server sent", func() bool {
		return p.discards(router)-lost >= p.counter(p.st.Server, "Tcp.OutSegs")-sent
	})
	p.forward(true)
}

// stranded is the truth of the client that did not hear of the end, and sends.
func (c *conn) stranded() Truth {
	c.c.write(late100)
	c.c.dies(unix.ECONNRESET)
	return c.truth(FromServer, "TCP_FLAGS", "listen").seen(unix.ECONNRESET)
}

// probing makes the first probe come after 1 s, the least there is.
func (c *conn) probing(probes int) {
	c.s.set(unix.TCP_KEEPIDLE, 1)
	c.s.set(unix.TCP_KEEPINTVL, 1)
	c.s.set(unix.TCP_KEEPCNT, probes)
	c.p.do(c.srv, request{Op: "set", FD: c.s.fd, Level: unix.SOL_SOCKET, Opt: unix.SO_KEEPALIVE, Value: 1})
}

func keepalive(p *play) []Truth {
	c := p.connect()
	c.probing(1)
	return c.expire()
}

func keepaliveUserTimeout(p *play) []Truth {
	c := p.connect()
	c.s.set(unix.TCP_USER_TIMEOUT, 1)
	c.probing(9)
	return c.expire()
}

// expire loses the reset on the cut path: the client learns nothing of it.
func (c *conn) expire() []Truth {
	c.silence()
	expired := c.truth(FromServer, "TCP_KEEPALIVE_TIMEOUT", "established").local(unix.ETIMEDOUT)
	return []Truth{expired, c.stranded()}
}

// userTimeout ends at the first retransmission, after 200 ms or so, by
// tcp_write_err, which sends nothing.
func userTimeout(p *play) []Truth {
	c := p.connect()
	c.s.set(unix.TCP_USER_TIMEOUT, 1)
	p.forward(false)
	c.s.write(late100)
	c.s.dies(unix.ETIMEDOUT)
	p.forward(true)
	silent := c.truth(FromNone, "", "").local(unix.ETIMEDOUT)
	silent.OwnerPID, silent.Unacked = c.srv.PID, late100
	return []Truth{silent, c.stranded()}
}

const maxOrphans = "/proc/sys/net/ipv4/tcp_max_orphans"

// orphanLimit is for a machine of its own: the limit is one for all namespaces.
// The retransmission timer finds it (net/ipv4/tcp_timer.c tcp_out_of_resources).
func orphanLimit(p *play) []Truth {
	before, err := os.ReadFile(maxOrphans)
	if err != nil {
		p.check(fmt.Errorf("read %s: %w", maxOrphans, err))
		return nil
	}
	c := p.connect()
	p.check(os.WriteFile(maxOrphans, []byte("0"), 0))
	defer func() { p.check(os.WriteFile(maxOrphans, before, 0)) }()
	p.forward(false)
	p.after(p.st.Server, "TcpExt.TCPAbortOnMemory", func() {
		c.s.write(late100)
		c.s.close()
	})
	t := c.truth(FromServer, "TCP_ABORT_ON_MEMORY", "fin_wait_1")
	t.Unacked = late100
	return []Truth{t}
}
