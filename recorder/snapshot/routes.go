package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// maxNeighbors bounds the neighbour table that is read: its kernel limit is 1024
// for each family unless somebody raised it (arp(7), gc_thresh3).
const maxNeighbors = 1 << 14

// routes asks the kernel for the way to each peer: once for the route that
// matches and once for what a packet would meet, learned MTU included. A peer
// without route is a result, not an error.
func (t *Taker) routes(ctx context.Context, peers []netip.Addr, links []evidence.InterfaceStats) ([]evidence.Route, error) {
	var all []evidence.Route
	for _, peer := range peers {
		r := evidence.Route{Peer: peer}
		for _, flags := range []uint32{unix.RTM_F_FIB_MATCH, 0} {
			err := t.route(ctx, flags, &r)
			if err := timeUp(ctx); err != nil {
				return all, err
			}
			if kind, why := refusal(err); why != "" {
				r.Type, r.Error = kind, why
			} else if err != nil {
				return all, fmt.Errorf("ask for the route to %v: %w", peer, err)
			}
		}
		nameLink(&r, links)
		all = append(all, r)
	}
	return all, nil
}

// refusal is what the kernel says instead of a way (fib_props in
// net/ipv4/fib_semantics.c), and the type of route that says so; why is empty if
// err is something else.
func refusal(err error) (kind, why string) {
	for errno, kind := range map[unix.Errno]string{
		unix.ENETUNREACH:  "", // no route at all, or one of type throw
		unix.EHOSTUNREACH: "unreachable",
		unix.EACCES:       "prohibit",
		unix.EINVAL:       "blackhole",
	} {
		if errors.Is(err, errno) {
			return kind, errno.Error()
		}
	}
	return "", ""
}

func nameLink(r *evidence.Route, links []evidence.InterfaceStats) {
	for i := range links {
		if links[i].Index != r.Index {
			continue
		}
		r.Interface = links[i].Name
		if r.MTU == 0 {
			r.MTU = uint32(links[i].MTU)
		}
	}
}

func (t *Taker) route(ctx context.Context, flags uint32, r *evidence.Route) error {
	q := request{family: unix.NETLINK_ROUTE, typ: unix.RTM_GETROUTE, body: routeRequest(r.Peer, flags), single: true}
	return t.dump(ctx, q, func(b []byte) bool {
		parseRoute(b, flags&unix.RTM_F_FIB_MATCH != 0, r)
		return true
	})
}

// routeRequest is a struct rtmsg (rtnetlink(7)) and the destination. An
// IPv4-mapped address must be unmapped.
func routeRequest(peer netip.Addr, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = unix.AF_INET, byte(peer.BitLen())
	if peer.Is6() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[8:], flags)
	return appendAttr(b, unix.RTA_DST, peer.AsSlice()...)
}

// routeTypes are the RTN_ values of linux/rtnetlink.h.
var routeTypes = [...]string{
	1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast",
	6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw", 10: "nat",
}

// parseRoute reads a struct rtmsg and the attributes after it into r: the route
// that matches, or what a packet for the peer would meet.
func parseRoute(b []byte, matches bool, r *evidence.Route) {
	if len(b) < unix.SizeofRtMsg {
		return
	}
	if n := int(b[7]); n < len(routeTypes) {
		r.Type = routeTypes[n]
	}
	var mtu uint32
	var expires time.Duration
	dst := netip.Addr{}
	for typ, value := range attributes(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.RTA_TABLE:
			r.Table = host32(value)
		case unix.RTA_OIF:
			r.Index = host32(value)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(value)
		case unix.RTA_VIA:
			r.Gateway = parseVia(value)
		case unix.RTA_PREFSRC:
			r.Source, _ = netip.AddrFromSlice(value)
		case unix.RTA_METRICS:
			mtu = parseRouteMTU(value)
		case unix.RTA_CACHEINFO:
			expires = parseRouteExpires(value)
		}
	}
	switch {
	case expires > 0 && mtu > 0:
		r.PMTU, r.PMTUExpires = mtu, expires
	case mtu > 0:
		r.MTU = mtu
	}
	if matches {
		r.Prefix, r.Protocol = routePrefix(b[0], b[1], dst), routeProtocol(b[5])
	}
}

// routePrefix is the destination of a route; a default route has none.
func routePrefix(family, bits uint8, dst netip.Addr) netip.Prefix {
	if !dst.IsValid() {
		dst = netip.IPv4Unspecified()
		if family == unix.AF_INET6 {
			dst = netip.IPv6Unspecified()
		}
	}
	return netip.PrefixFrom(dst, int(bits))
}

// parseVia reads a struct rtvia: a gateway of another family.
func parseVia(value []byte) netip.Addr {
	if len(value) < 2 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(value[2:])
	return a
}

func parseRouteMTU(metrics []byte) (mtu uint32) {
	for typ, value := range attributes(metrics) {
		if typ == unix.RTAX_MTU {
			mtu = host32(value)
		}
	}
	return mtu
}

// parseRouteExpires reads rta_expires, in clock ticks, of struct rta_cacheinfo.
func parseRouteExpires(value []byte) time.Duration {
	if len(value) < 12 {
		return 0
	}
	ticks := int32(binary.NativeEndian.Uint32(value[8:]))
	return time.Duration(ticks) * time.Second / clockTicks
}

// routeProtocol names who made a route (/etc/iproute2/rt_protos).
func routeProtocol(n uint8) string {
	switch n {
	case unix.RTPROT_REDIRECT:
		return "redirect"
	case unix.RTPROT_KERNEL:
		return "kernel"
	case unix.RTPROT_BOOT:
		return "boot"
	case unix.RTPROT_STATIC:
		return "static"
	case unix.RTPROT_RA:
		return "ra"
	case unix.RTPROT_DHCP:
		return "dhcp"
	case unix.RTPROT_BIRD:
		return "bird"
	case unix.RTPROT_BGP:
		return "bgp"
	}
	return strconv.Itoa(int(n))
}

// neighbors finds the neighbour that each route leads to.
func (t *Taker) neighbors(ctx context.Context, routes []evidence.Route) error {
	type place struct {
		addr  netip.Addr
		index uint32
	}
	want := map[place][]*evidence.Route{}
	for i := range routes {
		next := routes[i].Gateway
		if !next.IsValid() {
			next = routes[i].Peer
		}
		at := place{next.WithZone(""), routes[i].Index}
		want[at] = append(want[at], &routes[i])
	}
	n := 0
	r := request{family: unix.NETLINK_ROUTE, typ: unix.RTM_GETNEIGH, body: make([]byte, unix.SizeofNdMsg)}
	return t.dump(ctx, r, func(b []byte) bool {
		if found, ok := parseNeighbor(b); ok {
			for _, r := range want[place{found.Address, found.Index}] {
				r.Neighbor = &found
			}
		}
		n++
		return n < maxNeighbors
	})
}

// neighborStates are the NUD_ bits (linux/neighbour.h), from the lowest.
var neighborStates = [...]string{"incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"}

// parseNeighbor reads a struct ndmsg and the attributes after it.
func parseNeighbor(b []byte) (n evidence.Neighbor, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return n, false
	}
	n.Index = binary.NativeEndian.Uint32(b[4:])
	state := binary.NativeEndian.Uint16(b[8:])
	for i, name := range neighborStates {
		if state&(1<<i) != 0 {
			n.State = name
		}
	}
	for typ, value := range attributes(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			n.Address, ok = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			n.MAC = net.HardwareAddr(value).String()
		}
	}
	return n, ok && n.State != ""
}
