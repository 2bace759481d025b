package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/mdlayher/netlink"
)

// recvBytes is the size of the receive buffer, and so of the kernel's dump
// messages: netlink_dump() in net/netlink/af_netlink.c never fills more.
const recvBytes = 32 << 10

// request is one netlink dump.
type request struct {
	family int
	typ    netlink.HeaderType
	body   []byte
}

// dump sends r and gives each message's payload to each until that returns
// false, the dump is complete, or ctx is done. The bytes belong to each, but
// keeping them keeps a whole batch of messages. The socket is opened, and so its
// namespace chosen, on the caller's thread.
func dump(ctx context.Context, r request, each func([]byte) bool) error {
	c, err := netlink.Dial(r.family, &netlink.Config{MessageBufferSize: recvBytes})
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer c.Close()
	expired := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(expired) })
	defer stop()
	if _, err := c.Send(netlink.Message{
		Header: netlink.Header{Type: r.typ, Flags: netlink.Request | netlink.Dump}, Data: r.body,
	}); err != nil {
		return contextual(ctx, err)
	}
	for m, err := range c.ReceiveIter() {
		if err != nil {
			return contextual(ctx, err)
		}
		if ctx.Err() == nil && each(m.Data) {
			continue
		}
		// The iterator reads a dump to its end even when nobody listens: an
		// expired deadline makes it stop at once.
		if err := c.SetReadDeadline(expired); err != nil {
			return err
		}
		return timeUp(ctx)
	}
	return nil
}

// contextual gives the context's reason for a deadline that dump set because of it.
func contextual(ctx context.Context, err error) error {
	if up := timeUp(ctx); up != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return up
	}
	return err
}

// timeUp is nil while there is time.
func timeUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the time for the snapshot was up: %w", err)
	}
	return nil
}

// attributes walks netlink attributes (struct nlattr) in b. It ends at the first
// that does not fit. Values alias b.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	const header, typeMask = 4, 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= header {
			size := int(binary.NativeEndian.Uint16(b))
			if size < header || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&typeMask, b[header:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
