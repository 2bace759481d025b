package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tcpcoroner/evidence"
)

// topPorts is how many users of ephemeral ports are told.
const topPorts = 10

// takePorts counts ephemeral ports among the sockets that were read before.
func (t *Taker) takePorts(_ context.Context, s *evidence.Snapshot) {
	text, err := t.read("sys/net/ipv4/ip_local_port_range")
	if err != nil {
		miss(s, "use of ephemeral ports", err, "")
		return
	}
	r, ok := parsePortRange(text)
	if !ok {
		miss(s, "use of ephemeral ports", fmt.Errorf("ip_local_port_range says %q", text), "")
		return
	}
	if text, err := t.read("sys/net/ipv4/ip_local_reserved_ports"); err == nil {
		r.Reserved = parseReserved(text, r)
	}
	r.Uses = portUses(s.Sockets, r)
	s.Implicated.Ports = &r
}

// parsePortRange reads "32768\t60999".
func parsePortRange(text string) (r evidence.PortRange, ok bool) {
	f := strings.Fields(text)
	if len(f) != 2 {
		return r, false
	}
	first, err := strconv.ParseUint(f[0], 10, 16)
	last, err2 := strconv.ParseUint(f[1], 10, 16)
	r.First, r.Last = uint16(first), uint16(last)
	return r, err == nil && err2 == nil && r.First <= r.Last
}

// parseReserved counts the ports of "8080,9000-9010" that are in the range. The
// kernel writes them in order, each once.
func parseReserved(text string, r evidence.PortRange) (n int) {
	for _, part := range strings.Split(strings.TrimSpace(text), ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err == nil && err2 == nil {
			n += max(min(int(last), int(r.Last))-max(int(first), int(r.First))+1, 0)
		}
	}
	return n
}

// portUses counts the sockets in the range by source and destination.
func portUses(sockets []evidence.Socket, r evidence.PortRange) []evidence.PortUse {
	type user struct {
		src netip.Addr
		dst netip.AddrPort
	}
	uses := map[user]evidence.PortUse{}
	for i := range sockets {
		s := &sockets[i]
		if port := s.Local.Port(); s.Listening() || !s.Remote.IsValid() || port < r.First || port > r.Last {
			continue
		}
		k := user{s.Local.Addr(), s.Remote}
		u := uses[k]
		u.Source, u.Destination = k.src, k.dst
		u.Used++
		if s.State == stateNames[stateTimeWait] {
			u.TimeWait++
		}
		uses[k] = u
	}
	all := make([]evidence.PortUse, 0, len(uses))
	for _, u := range uses {
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b evidence.PortUse) int {
		return cmp.Or(cmp.Compare(b.Used, a.Used), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	})
	return slices.Clip(all[:min(len(all), topPorts)])
}
