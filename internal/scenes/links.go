package scenes

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of include/uapi/linux/veth.h.
const vethInfoPeer = 1

// leg is a veth pair from the router to another host. The device is named after
// the host on the router, and "eth0" on the host, whose default route it is.
type leg struct {
	router, host       *Host
	device             string
	ip4, ip6, gw4, gw6 string
}

const hostDevice = "eth0"

func (l leg) connect() error {
	if err := l.addPair(); err != nil {
		return err
	}
	ends := []end{{l.router, l.device}, {l.host, hostDevice}}
	for _, e := range ends {
		// 1 is IN6_ADDR_GEN_MODE_NONE: the kernel makes no link-local address,
		// which would have to be proven unique first.
		if err := e.Sysctl("net.ipv6.conf."+e.device+".addr_gen_mode", "1"); err != nil {
			return err
		}
		if err := e.up(e.device); err != nil {
			return err
		}
	}
	for _, e := range ends {
		if err := e.awaitRunning(); err != nil {
			return err
		}
	}
	return l.address(ends)
}

// address gives both ends their addresses and the host its default routes. The
// router needs a link-local address to solicit neighbours for others
// (net/ipv6/ndisc.c ndisc_send_ns).
func (l leg) address(ends []end) error {
	for i, ips := range [][]string{{l.gw4, l.gw6, "fe80::1"}, {l.ip4, l.ip6, "fe80::2"}} {
		for _, ip := range ips {
			if err := ends[i].addAddress(ends[i].device, netip.MustParseAddr(ip)); err != nil {
				return err
			}
		}
	}
	for _, gw := range []string{l.gw4, l.gw6} {
		if err := l.host.addDefaultRoute(netip.MustParseAddr(gw)); err != nil {
			return err
		}
	}
	return nil
}

// end is one device of a leg.
type end struct {
	*Host
	device string
}

// awaitRunning waits for the link: what is sent before the kernel's link watch
// has come around (net/core/link_watch.c) is lost.
func (e end) awaitRunning() error {
	for stop := time.Now().Add(patience); time.Now().Before(stop); time.Sleep(pause) {
		flags := uint16(0)
		err := e.ifreq(e.device, unix.SIOCGIFFLAGS, func(r *unix.Ifreq) { flags = r.Uint16() })
		if err != nil {
			return fmt.Errorf("read flags of %s on %s: %w", e.device, e.Name, err)
		}
		if flags&unix.IFF_RUNNING != 0 {
			return nil
		}
	}
	return fmt.Errorf("wait for link of %s on %s: it did not come in %v", e.device, e.Name, patience)
}

// addPair makes the veth pair with one end in each namespace.
func (l leg) addPair() error {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, l.device)
	ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(unix.IFLA_INFO_KIND, "veth")
		info.Nested(unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) error {
			data.Do(vethInfoPeer, func() ([]byte, error) {
				peer := netlink.NewAttributeEncoder()
				peer.String(unix.IFLA_IFNAME, hostDevice)
				peer.Uint32(unix.IFLA_NET_NS_FD, uint32(l.host.netns.Fd()))
				b, err := peer.Encode()
				return append(make([]byte, unix.SizeofIfInfomsg), b...), err
			})
			return nil
		})
		return nil
	})
	err := l.router.rtnetlink(unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), ae)
	if err != nil {
		return fmt.Errorf("join %s and %s by veth: %w", l.router.Name, l.host.Name, err)
	}
	return nil
}

// up brings a device up; SIOCSIFFLAGS of netdevice(7).
func (h *Host) up(device string) error {
	if err := h.ifreq(device, unix.SIOCSIFFLAGS, nil); err != nil {
		return fmt.Errorf("bring up %s on %s: %w", device, h.Name, err)
	}
	return nil
}

// ifreq asks about a device, or with SIOCSIFFLAGS brings it up, and shows the
// answer to get.
func (h *Host) ifreq(device string, op uint, get func(*unix.Ifreq)) error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		if op == unix.SIOCSIFFLAGS {
			req.SetUint16(unix.IFF_UP)
		}
		if err := unix.IoctlIfreq(fd, op, req); err != nil {
			return err
		}
		if get != nil {
			get(req)
		}
		return nil
	})
}

func (h *Host) addAddress(device string, ip netip.Addr) error {
	index := uint32(0)
	err := h.ifreq(device, unix.SIOCGIFINDEX, func(r *unix.Ifreq) { index = r.Uint32() })
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", device, h.Name, err)
	}
	m := unix.IfAddrmsg{Family: family(ip), Prefixlen: 24, Index: index}
	if ip.Is6() {
		m.Prefixlen, m.Flags = 64, unix.IFA_F_NODAD
	}
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, ip.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, ip.AsSlice())
	if err := h.rtnetlink(unix.RTM_NEWADDR, (*[unix.SizeofIfAddrmsg]byte)(unsafe.Pointer(&m))[:], ae); err != nil {
		return fmt.Errorf("add address %v to %s on %s: %w", ip, device, h.Name, err)
	}
	return nil
}

func (h *Host) addDefaultRoute(gw netip.Addr) error {
	m := unix.RtMsg{
		Family: family(gw), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_GATEWAY, gw.AsSlice())
	if err := h.rtnetlink(unix.RTM_NEWROUTE, (*[unix.SizeofRtMsg]byte)(unsafe.Pointer(&m))[:], ae); err != nil {
		return fmt.Errorf("add default route by %v on %s: %w", gw, h.Name, err)
	}
	return nil
}

// rtnetlink sends one request to make something (rtnetlink(7)).
func (h *Host) rtnetlink(kind netlink.HeaderType, header []byte, ae *netlink.AttributeEncoder) error {
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	return h.request(unix.NETLINK_ROUTE, kind, netlink.Create|netlink.Excl, append(header, attrs...))
}

// flushConntrack forgets all tracked connections: IPCTNL_MSG_CT_DELETE without
// a tuple (net/netfilter/nf_conntrack_netlink.c ctnetlink_del_conntrack).
func (h *Host) flushConntrack() error {
	const deleteAll = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	if err := h.request(unix.NETLINK_NETFILTER, deleteAll, 0, make([]byte, 4)); err != nil {
		return fmt.Errorf("flush connection tracking on %s: %w", h.Name, err)
	}
	return nil
}

// request sends one netlink message in the namespace and waits for its answer.
func (h *Host) request(protocol int, kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) error {
	c, err := netlink.Dial(protocol, &netlink.Config{NetNS: int(h.netns.Fd())})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   data,
	})
	return err
}

func family(ip netip.Addr) uint8 {
	if ip.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// diagID writes struct inet_diag_sockid without interface and cookie
// (include/uapi/linux/inet_diag.h).
func diagID(local, remote netip.AddrPort) []byte {
	b := make([]byte, 48)
	binary.BigEndian.PutUint16(b[0:], local.Port())
	binary.BigEndian.PutUint16(b[2:], remote.Port())
	copy(b[4:20], local.Addr().AsSlice())
	copy(b[20:36], remote.Addr().AsSlice())
	for i := 40; i < 48; i++ {
		b[i] = 0xff // INET_DIAG_NOCOOKIE: any
	}
	return b
}

// destroySocket does what "ss -K" does, from this process and thread.
func destroySocket(local, remote netip.AddrPort) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	// struct inet_diag_req_v2: family, protocol, ext, pad, states, id.
	req := append([]byte{family(local.Addr()), unix.IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff}, diagID(local, remote)...)
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DESTROY, Flags: netlink.Request | netlink.Acknowledge},
		Data:   req,
	})
	if err != nil {
		return fmt.Errorf("destroy socket %v > %v (the kernel needs CONFIG_INET_DIAG_DESTROY): %w", local, remote, err)
	}
	return nil
}
