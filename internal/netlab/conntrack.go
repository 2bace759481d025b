package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Connection is a TCP connection over IPv4, by who opened it and to whom.
type Connection struct {
	From, To netip.AddrPort
	// Assured connections do not make room in a full table (early_drop of
	// net/netfilter/nf_conntrack_core.c).
	Assured bool
}

// Tracker makes entries in the connection-tracking table of a namespace.
type Tracker struct{ conn *netlink.Conn }

// NewTracker opens one in the namespace that within runs a function in, NS.Do for
// one. It is closed when the test ends.
func NewTracker(t testing.TB, within func(func() error) error) *Tracker {
	t.Helper()
	made, err := OpenTracker(within)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

// OpenTracker is NewTracker for those who close it themselves.
func OpenTracker(within func(func() error) error) (*Tracker, error) {
	t := &Tracker{}
	err := within(func() (err error) {
		t.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	return t, err
}

// Close gives the socket up. The entries stay.
func (t *Tracker) Close() error { return t.conn.Close() }

// The attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaTimeout    = 7
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaProtoNum   = 1
	ctaProtoSrc   = 2
	ctaProtoDst   = 3
)

// statusAssured is IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED of
// linux/netfilter/nf_conntrack_common.h.
const statusAssured = 2 | 4 | 8

// entryLife is how long an entry stays, in seconds.
const entryLife = 600

// atOnce is how many entries one system call makes.
const atOnce = 500

// Track makes an entry each. The kernel answers failures only, and they are not
// read: the count of the table tells.
func (t *Tracker) Track(all ...Connection) error {
	for len(all) > 0 {
		n := min(len(all), atOnce)
		messages := make([]netlink.Message, n)
		for i, c := range all[:n] {
			var err error
			if messages[i], err = entry(c); err != nil {
				return fmt.Errorf("make entry %v: %w", c, err)
			}
		}
		if _, err := t.conn.SendMessages(messages); err != nil {
			return fmt.Errorf("track %d connections: %w", n, err)
		}
		all = all[n:]
	}
	return nil
}

func entry(c Connection) (netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(ctaTupleOrig, tuple(c.From, c.To))
	e.Nested(ctaTupleReply, tuple(c.To, c.From))
	e.Uint32(ctaTimeout, entryLife)
	if c.Assured {
		e.Uint32(ctaStatus, statusAssured)
	}
	attributes, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK << 8, Flags: netlink.Request | netlink.Create | netlink.Excl},
		Data:   append([]byte{unix.AF_INET, 0, 0, 0}, attributes...), // nfgenmsg
	}, err
}

func tuple(from, to netip.AddrPort) func(*netlink.AttributeEncoder) error {
	return func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleIP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(ctaIPv4Src, from.Addr().AsSlice())
			e.Bytes(ctaIPv4Dst, to.Addr().AsSlice())
			return nil
		})
		e.Nested(ctaTupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, unix.IPPROTO_TCP)
			e.Uint16(ctaProtoSrc, from.Port())
			e.Uint16(ctaProtoDst, to.Port())
			return nil
		})
		return nil
	}
}
