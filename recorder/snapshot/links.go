package snapshot

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
)

// interfaces dumps the interfaces of this thread's network namespace.
func (t *Taker) interfaces(ctx context.Context) ([]evidence.InterfaceStats, error) {
	var all []evidence.InterfaceStats
	r := request{family: unix.NETLINK_ROUTE, typ: unix.RTM_GETLINK, body: make([]byte, unix.SizeofIfInfomsg)}
	err := t.dump(ctx, r, func(b []byte) bool {
		if s, ok := parseLink(b); ok {
			all = append(all, s)
		}
		return true
	})
	if err != nil {
		return all, fmt.Errorf("dump interfaces with rtnetlink: %w", err)
	}
	return all, nil
}

// parseLink reads a struct ifinfomsg and the attributes after it (rtnetlink(7)).
func parseLink(b []byte) (evidence.InterfaceStats, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return evidence.InterfaceStats{}, false
	}
	const up = unix.IFF_UP | unix.IFF_RUNNING
	var s evidence.InterfaceStats
	s.LinkType = binary.NativeEndian.Uint16(b[2:])
	s.Index = binary.NativeEndian.Uint32(b[4:])
	s.Up = binary.NativeEndian.Uint32(b[8:])&up == up
	for typ, value := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			s.Name = unix.ByteSliceToString(value)
		case unix.IFLA_MTU:
			if len(value) >= 4 {
				s.MTU = int(binary.NativeEndian.Uint32(value))
			}
		case unix.IFLA_STATS64:
			parseLinkStats(value, &s)
		}
	}
	return s, s.Name != ""
}

// parseLinkStats reads struct rtnl_link_stats64 (linux/if_link.h), 64-bit
// numbers in an order that only grows at its end.
func parseLinkStats(value []byte, s *evidence.InterfaceStats) {
	for field, to := range map[int]*uint64{
		0: &s.RxPackets, 1: &s.TxPackets, 4: &s.RxErrors, 5: &s.TxErrors,
		6: &s.RxDropped, 7: &s.TxDropped, 15: &s.RxMissed,
	} {
		if len(value) >= field*8+8 {
			*to = binary.NativeEndian.Uint64(value[field*8:])
		}
	}
}

// Links reads the interfaces and their counters (RTM_GETLINK).
func (t *Taker) Links() ([]evidence.InterfaceStats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), linksTime)
	defer cancel()
	return within(t, func() ([]evidence.InterfaceStats, error) { return t.interfaces(ctx) })
}

// linksTime bounds Links.
const linksTime = time.Second
