package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// bufferBytes is the size of the buffers that are read into, and so of the
// kernel's dump messages: netlink_dump() in net/netlink/af_netlink.c never fills
// more.
const bufferBytes = 32 << 10

// request is one netlink dump or, with single, a question for one object.
type request struct {
	family int
	typ    uint16
	body   []byte
	single bool
}

// bytes is the request as a struct nlmsghdr and its payload (netlink(7)).
func (r request) bytes() []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(r.body))
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], r.typ)
	// A dump ends with NLMSG_DONE, a single answer with the acknowledgement.
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_DUMP)
	if r.single {
		flags = unix.NLM_F_REQUEST | unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(b[6:], flags)
	return append(b, r.body...)
}

// dump sends r and gives each message's payload to each until that returns
// false, the dump is complete, or ctx is done. The bytes are valid until each
// returns. The socket is opened, and so its namespace chosen, on the caller's
// thread; a socket of its own needs neither a goroutine nor the network poller,
// for the kernel makes each batch of a dump in the call that reads it.
func (t *Taker) dump(ctx context.Context, r request, each func([]byte) bool) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, r.family)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// For a kernel that does not answer: how often ctx is looked at then.
	wait := unix.Timeval{Usec: 100_000}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return fmt.Errorf("set the time limit of a netlink socket: %w", err)
	}
	if err := unix.Sendto(fd, r.bytes(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	buf := t.buffer()
	defer t.buffers.Put(buf)
	for more := true; more; {
		n, err := receive(ctx, fd, *buf)
		if err != nil {
			return err
		}
		if more, err = deliver(ctx, (*buf)[:n], each); err != nil {
			return err
		}
	}
	return nil
}

// receive reads one batch of messages.
func receive(ctx context.Context, fd int, buf []byte) (int, error) {
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		switch kernel, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("netlink receive: %w", err)
		case n > len(buf):
			return 0, fmt.Errorf("netlink receive: the kernel sent %d bytes at once, %d are taken", n, len(buf))
		case ok && kernel.Pid == 0:
			return n, nil
		}
		if err := timeUp(ctx); err != nil {
			return 0, err
		}
	}
}

// deliver hands the messages of one batch on, and tells whether more will come.
func deliver(ctx context.Context, b []byte, each func([]byte) bool) (more bool, err error) {
	for typ, data := range messages(b) {
		switch typ {
		case unix.NLMSG_NOOP:
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return false, messageError(data)
		default:
			if ctx.Err() != nil || !each(data) {
				return false, timeUp(ctx)
			}
		}
	}
	return true, nil
}

// messageError reads the number that begins NLMSG_ERROR, and NLMSG_DONE if the
// dump failed on the way: a negative errno, 0 if there is none.
func messageError(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n < 0 {
		return fmt.Errorf("netlink receive: %w", unix.Errno(-n))
	}
	return nil
}

// messages walks netlink messages (struct nlmsghdr) in b: type and payload. It
// ends at the first that does not fit. Values alias b.
func messages(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// timeUp is nil while there is time.
func timeUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the time for the snapshot was up: %w", err)
	}
	return nil
}

// appendAttr appends one netlink attribute, padded.
func appendAttr(b []byte, typ uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// Numbers in attributes; those that are too short read as 0.

func host32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func big32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func big64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
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
