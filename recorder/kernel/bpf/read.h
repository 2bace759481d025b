/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading of sockets and segments. */
#pragma once

/* is_full tells whether sk is a struct sock and not one of the small ones that
 * share only struct sock_common with it (sk_fullsock). */
INLINE bool is_full(struct sock *sk, u8 state)
{
	return sk && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

INLINE u64 cookie_of(struct sock *sk)
{
	return READ(sk, __sk_common.skc_cookie.counter);
}

INLINE struct net *net_of(struct sock *sk, struct sk_buff *skb)
{
	if (sk)
		return READ(sk, __sk_common.skc_net.net);
	/* tcp_v4_rcv() clears dev once it has a socket. */
	struct net_device *dev = READ(skb, dev);
	if (!dev) {
		struct dst_entry *dst = (void *)(READ(skb, _skb_refdst) & SKB_DST_PTRMASK);
		dev = READ(dst, dev);
	}
	return READ(dev, nd_net.net);
}

INLINE u64 net_cookie(struct net *net)
{
	return HAS(net, net_cookie) ? READ(net, net_cookie) : READ(net, ns.inum);
}

INLINE void set_net(struct tuple *t, struct net *net)
{
	t->net = net_cookie(net);
	t->netns = READ(net, ns.inum);
}

INLINE u32 netns_of(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ns.inum);
}

/* in_watched is for a socket whose type the verifier knows: plain loads. */
INLINE bool in_watched(struct sock *sk)
{
	return is_watched(sk->__sk_common.skc_net.net->ns.inum);
}

INLINE u64 cgroup_of(struct cgroup *cgroup)
{
	struct kernfs_node *kn = READ(cgroup, kn);
	return READ(kn, id);
}

INLINE void map4(u8 *to, u32 addr)
{
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &addr, 4);
}

INLINE void read_local(struct sock *sk, u8 *to)
{
	if (READ(sk, __sk_common.skc_family) == AF_INET6) {
		bpf_probe_read_kernel(to, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_rcv_saddr));
		return;
	}
	u32 addr = READ(sk, __sk_common.skc_rcv_saddr);
	if (!addr)
		addr = READ((struct inet_sock *)sk, inet_saddr);
	map4(to, addr);
}

/* read_tuple reads a full socket. skc_num is 0 after a disconnect, inet_sport stays. */
INLINE void read_tuple(struct sock *sk, struct tuple *t)
{
	set_net(t, net_of(sk, NULL));
	t->lport = ntohs(READ((struct inet_sock *)sk, inet_sport));
	t->rport = ntohs(READ(sk, __sk_common.skc_dport));
	read_local(sk, t->laddr);
	if (READ(sk, __sk_common.skc_family) == AF_INET6)
		bpf_probe_read_kernel(t->raddr, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_daddr));
	else
		map4(t->raddr, READ(sk, __sk_common.skc_daddr));
}

/* turn makes the source the local end. */
INLINE void turn(struct tuple *t, struct segment *s)
{
	u8 addr[16];
	u16 port = t->lport;
	__builtin_memcpy(addr, t->laddr, 16);
	__builtin_memcpy(t->laddr, t->raddr, 16);
	__builtin_memcpy(t->raddr, addr, 16);
	t->lport = t->rport;
	t->rport = port;
	s->how |= SEGMENT_OUTGOING;
}

/* read_segment reads a TCP segment that starts at the network header; false if it
 * is none. Only TCP itself (is_tcp) may trust the transport header behind IPv6
 * extension headers. The local end is the destination, unless a socket sent it. */
INLINE bool read_segment(struct sk_buff *skb, struct tuple *t, struct segment *s, bool is_tcp)
{
	u8 ip[40] = {}, tcp[20] = {};
	u32 network = READ(skb, network_header), offset, wire;
	unsigned char *head = READ(skb, head);

	if (bpf_probe_read_kernel(ip, sizeof(ip), head + network))
		return 0;
	if (ip[0] >> 4 == 4) {
		u32 frag = (u32)ip[6] << 8 | ip[7];
		if (ip[9] != IPPROTO_TCP || frag & 0x1fff)
			return 0;
		offset = network + (ip[0] & 15) * 4;
		wire = (u32)ip[2] << 8 | ip[3];
		s->ttl = ip[8];
		t->raddr[10] = t->raddr[11] = t->laddr[10] = t->laddr[11] = 0xff;
		__builtin_memcpy(t->raddr + 12, ip + 12, 4);
		__builtin_memcpy(t->laddr + 12, ip + 16, 4);
	} else if (ip[0] >> 4 == 6) {
		offset = network + 40;
		if (ip[6] != IPPROTO_TCP) {
			if (!is_tcp)
				return 0;
			offset = READ(skb, transport_header);
		}
		wire = ((u32)ip[4] << 8 | ip[5]) + 40;
		s->ttl = ip[7];
		__builtin_memcpy(t->raddr, ip + 8, 16);
		__builtin_memcpy(t->laddr, ip + 24, 16);
	} else {
		return 0;
	}
	if (offset + sizeof(tcp) > READ(skb, tail) || bpf_probe_read_kernel(tcp, sizeof(tcp), head + offset))
		return 0;
	t->rport = (u16)tcp[0] << 8 | tcp[1];
	t->lport = (u16)tcp[2] << 8 | tcp[3];
	s->seq = (u32)tcp[4] << 24 | (u32)tcp[5] << 16 | (u32)tcp[6] << 8 | tcp[7];
	s->ack = (u32)tcp[8] << 24 | (u32)tcp[9] << 16 | (u32)tcp[10] << 8 | tcp[11];
	s->flags = tcp[13] | (u16)(tcp[12] & 1) << 8;
	u32 headers = offset - network + (tcp[12] >> 4) * 4;
	s->payload = wire > headers ? wire - headers : 0;
	s->how = SEGMENT_PRESENT;
	if (!is_tcp && READ(skb, sk))
		turn(t, s);
	return 1;
}
