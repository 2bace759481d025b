package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
)

// MemoryLimits are net.ipv4.tcp_max_orphans, in sockets, and the third number of
// net.ipv4.tcp_mem, in pages: what TCP runs out of (tcp(7)).
func (t *Taker) MemoryLimits() (orphans, pages uint64, err error) {
	orphans, err = t.number("sys/net/ipv4/tcp_max_orphans")
	text, err2 := t.read("sys/net/ipv4/tcp_mem")
	if err2 == nil {
		pages, err2 = parseMaxPages(text)
	}
	return orphans, pages, errors.Join(err, err2)
}

// parseMaxPages reads the last of "low pressure high".
func parseMaxPages(text string) (uint64, error) {
	f := strings.Fields(text)
	if len(f) != 3 {
		return 0, fmt.Errorf("tcp_mem says %q: three numbers are wanted", text)
	}
	return strconv.ParseUint(f[2], 10, 64)
}

// Ports counts the ephemeral ports in use. It dumps all sockets, which costs
// milliseconds for each ten thousand of them.
func (t *Taker) Ports(ctx context.Context) (*evidence.PortRange, error) {
	s := evidence.Snapshot{Implicated: &evidence.Implicated{}}
	_, err := within(t, func() (none struct{}, _ error) {
		t.takeSockets(ctx, &s)
		t.takePorts(ctx, &s)
		return none, nil
	})
	if err != nil {
		return nil, fmt.Errorf("count ephemeral ports: %w", err)
	}
	if s.Implicated.Ports == nil || len(s.Missing) > 0 {
		return s.Implicated.Ports, fmt.Errorf("count ephemeral ports: %s: %s", s.Missing[0].What, s.Missing[0].Why)
	}
	return s.Implicated.Ports, nil
}
