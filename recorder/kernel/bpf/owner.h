/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who owns a socket, while it lives and after. */
#pragma once

/* read_owner reads a task whose type the verifier knows: plain loads, which
 * cannot fault either, and no call for each field. */
INLINE void read_owner(struct owner *o, struct task_struct *task, u8 via)
{
	struct task_struct *leader = task->group_leader;

	o->start = leader->start_boottime;
	o->cgroup = task->cgroups->dfl_cgrp->kn->id;
	o->pid = task->tgid;
	o->tid = task->pid;
	o->uid = task->cred->euid.val;
	o->via = via;
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), __builtin_preserve_access_index(&leader->comm));
}

INLINE struct slot *slot_of(u64 cookie)
{
	u32 i = cookie & (SLOTS - 1);
	return bpf_map_lookup_elem(&slots, &i);
}

INLINE u64 *overflowed(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&overflow, &zero);
}

/* owner_of is the owner of a socket that lives as long as the caller looks. */
INLINE struct owner *owner_of(u64 cookie)
{
	struct slot *s = slot_of(cookie);
	if (!cookie)
		return NULL;
	if (s && s->cookie == cookie)
		return &s->owner;
	u64 *n = overflowed();
	if (!n || !*n)
		return NULL;
	return bpf_map_lookup_elem(&owners, &cookie);
}

/* put_slot writes a slot that is free, or the cookie's already. Who looks at the
 * same time sees no owner, or a whole one. */
INLINE bool put_slot(struct slot *s, u64 had, u64 cookie, struct owner *o)
{
	if (__sync_val_compare_and_swap(&s->cookie, had, SLOT_BUSY) != had)
		return 0;
	s->owner = *o;
	__sync_lock_test_and_set(&s->cookie, cookie);
	return 1;
}

INLINE void put_owner(u64 cookie, struct owner *o)
{
	struct slot *s = slot_of(cookie);
	if (!cookie)
		return;
	if (s && s->cookie == cookie && put_slot(s, cookie, cookie, o))
		return;
	struct owner *old = owner_of(cookie);
	if (!old && s && !s->cookie && put_slot(s, 0, cookie, o)) {
		count(COUNT_OWNER_IN);
		return;
	}
	u64 *n = overflowed();
	if (n)
		__sync_fetch_and_add(n, 1);
	/* An int: before 6.4 the upper half of the result is not its sign. */
	int err = bpf_map_update_elem(&owners, &cookie, o, BPF_ANY);
	if (err)
		count(COUNT_OWNER_FAILED);
	else if (!old)
		count(COUNT_OWNER_IN);
}

INLINE void forget_owner(u64 cookie)
{
	struct slot *s = slot_of(cookie);
	if (!cookie)
		return;
	if (s && s->cookie == cookie) {
		__sync_lock_test_and_set(&s->cookie, 0);
		count(COUNT_OWNER_OUT);
	}
	/* Also where it had a slot: two CPUs may have put it at the same time. */
	u64 *n = overflowed();
	if (n && *n && !bpf_map_delete_elem(&owners, &cookie))
		count(COUNT_OWNER_OUT);
}

INLINE void put_current(u64 cookie, u8 via)
{
	struct owner o = {};
	read_owner(&o, bpf_get_current_task_btf(), via);
	put_owner(cookie, &o);
}

INLINE void listener_key_of(struct listener_key *k, struct sock *sk)
{
	k->net = net_cookie(net_of(sk, NULL));
	k->port = ntohs(READ((struct inet_sock *)sk, inet_sport));
	read_local(sk, k->addr);
}

INLINE void listener_came(struct sock *sk, u64 cookie, struct owner *o)
{
	struct listener_key k = {};
	struct listener new = {.owner = *o, .cookie = cookie, .alive = 1};
	listener_key_of(&k, sk);
	struct listener *old = bpf_map_lookup_elem(&listeners, &k);
	if (old && old->alive > 0) {
		if (old->cookie == cookie && o->pid == old->owner.pid)
			return;
		new.shared = old->shared || old->owner.pid != o->pid;
		new.alive = old->alive + (old->cookie != cookie);
		if (old->cookie == cookie) /* the same socket, found with a better owner */
			new.shared = old->shared;
	}
	bpf_map_update_elem(&listeners, &k, &new, BPF_ANY);
}

INLINE void listener_went(struct sock *sk)
{
	struct listener_key k = {};
	listener_key_of(&k, sk);
	struct listener *l = bpf_map_lookup_elem(&listeners, &k);
	if (l && l->alive > 0)
		__sync_fetch_and_add(&l->alive, -1);
}

/* find_listener is the listener of a local end: at its address or at any. */
INLINE struct listener *find_listener(struct tuple *t)
{
	struct listener_key k = {.net = t->net, .port = t->lport};
	__builtin_memcpy(k.addr, t->laddr, 16);
	struct listener *l = bpf_map_lookup_elem(&listeners, &k);
	if (l)
		return l;
	__builtin_memset(k.addr + 12, 0, 4);
	if (k.addr[10] == 0xff && k.addr[11] == 0xff)
		l = bpf_map_lookup_elem(&listeners, &k);
	if (l)
		return l;
	__builtin_memset(k.addr, 0, 16);
	return bpf_map_lookup_elem(&listeners, &k);
}

/* Where accept is not watched, what was accepted is its listener's until it is
 * used. */
const volatile bool inherit_accepted = 0;

/* inherited is the owner of a connection that nobody owns: while it waits to be
 * accepted it is its listener's, unless the port has several. It waits as long as
 * it has no file and never had one (sock_orphan). */
INLINE bool inherited(struct owner *o, struct sock *sk, struct tuple *t)
{
	bool waits = !READ(sk, sk_socket) && !(READ(sk, __sk_common.skc_flags) & 1UL << SOCK_DEAD);
	if (!waits && !inherit_accepted)
		return 0;
	struct listener *l = find_listener(t);
	if (!l || l->shared)
		return 0;
	*o = l->owner;
	o->via = VIA_INHERIT;
	return 1;
}

/* unread_of is tcp_inq(): a FIN takes one sequence number but is not data. */
INLINE u32 unread_of(struct sock *sk)
{
	u32 n = READ((struct tcp_sock *)sk, rcv_nxt) - READ((struct tcp_sock *)sk, copied_seq);
	if (n && READ(sk, __sk_common.skc_flags) & (1UL << SOCK_DONE))
		n--;
	return n;
}

INLINE u32 unacked_of(struct sock *sk)
{
	return READ((struct tcp_sock *)sk, write_seq) - READ((struct tcp_sock *)sk, snd_una);
}

/* Chosen at random, so that nobody can aim at a plot. */
const volatile u64 plot_seed = 0;

INLINE struct plot *plot_of(struct tuple *t)
{
	u64 h = plot_seed, *w = (u64 *)t;
	_Static_assert(sizeof(*t) == 6 * sizeof(u64), "a tuple has no holes");
#pragma unroll
	for (int i = 0; i < 6; i++) {
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	u32 i = h & (PLOTS - 1);
	return bpf_map_lookup_elem(&graves, &i);
}

INLINE bool same_tuple(struct tuple *a, struct tuple *b)
{
	u64 *x = (u64 *)a, *y = (u64 *)b, diff = 0;
#pragma unroll
	for (int i = 0; i < 6; i++)
		diff |= x[i] ^ y[i];
	return !diff;
}

/* find_grave copies the latest grave of a tuple. One that is overwritten meanwhile
 * is none: the additions of 0 are barriers. */
INLINE void find_grave(struct grave *to, struct tuple *t)
{
	struct plot *p = plot_of(t);
	u64 latest = 0;
	if (!p)
		return;
#pragma unroll
	for (int i = 0; i < WAYS; i++) {
		u64 died = __sync_fetch_and_add(&p->died[i], 0);
		if (died <= latest || !same_tuple(&p->tuple[i], t))
			continue;
		*to = p->grave[i];
		if (__sync_fetch_and_add(&p->died[i], 0) == died) {
			latest = died;
		} else {
			__builtin_memset(to, 0, sizeof(*to));
			latest = 0;
		}
	}
}

/* The oldest of the four; the verifier wants to see a bound. */
INLINE u32 oldest(struct plot *p)
{
	u32 a = p->died[1] < p->died[0] ? 1 : 0;
	u32 b = p->died[3] < p->died[2] ? 3 : 2;
	u64 first = p->died[0] < p->died[1] ? p->died[0] : p->died[1];
	u64 second = p->died[2] < p->died[3] ? p->died[2] : p->died[3];
	return second < first ? b : a;
}

/* bury keeps what is known of a socket that dies. The verifier knows its type:
 * plain loads, for this is done for each connection. */
INLINE void bury(struct sock *sk, int state)
{
	struct tuple t = {};
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	struct net *net = sk->__sk_common.skc_net.net;
	t.net = HAS(net, net_cookie) ? net->net_cookie : net->ns.inum;
	t.netns = net->ns.inum;
	t.lport = ntohs(tp->inet_conn.icsk_inet.inet_sport);
	t.rport = ntohs(sk->__sk_common.skc_dport);
	if (sk->__sk_common.skc_family == AF_INET) {
		map4(t.laddr, sk->__sk_common.skc_rcv_saddr ?: tp->inet_conn.icsk_inet.inet_saddr);
		map4(t.raddr, sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(t.laddr, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_rcv_saddr));
		bpf_probe_read_kernel(t.raddr, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_daddr));
	}
	struct plot *p = plot_of(&t);
	if (!p || __sync_val_compare_and_swap(&p->busy, 0, 1)) {
		count(COUNT_UNBURIED); /* another CPU buries in this plot, or an interrupted program */
		return;
	}
	u32 way = oldest(p) & (WAYS - 1);
	struct grave *g = &p->grave[way];
	u64 now = bpf_ktime_get_boot_ns();
	__sync_lock_test_and_set(&p->died[way], 0);
	p->tuple[way] = t;
	g->died = now;
	g->cookie = sk->__sk_common.skc_cookie.counter;
	struct owner *o = owner_of(g->cookie);
	if (o)
		g->owner = *o;
	else if (!inherited(&g->owner, sk, &t))
		__builtin_memset(&g->owner, 0, sizeof(g->owner));
	g->err = sk->sk_err;
	g->unread = tp->rcv_nxt - tp->copied_seq;
	if (g->unread && sk->__sk_common.skc_flags & 1UL << SOCK_DONE)
		g->unread--;
	g->unacked = tp->write_seq - tp->snd_una;
	g->state = state;
	__sync_lock_test_and_set(&p->died[way], now);
	__sync_lock_test_and_set(&p->busy, 0);
	count(COUNT_BURIED);
}
