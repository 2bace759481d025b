/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who owns a socket, while it lives and after. */
#pragma once

/* The inode number of the PID namespace whose numbers processes are told by; 0 is
 * the initial one. */
const volatile u32 pid_namespace = 0;

/* number_at is the number that a process has at a level, if that is the namespace. */
INLINE u32 number_at(struct pid *pid, u32 level)
{
	struct upid *n = __builtin_preserve_access_index(&pid->numbers[0]);
	n = (void *)n + level * SIZE(struct upid);
	struct pid_namespace *ns = READ(n, ns);
	return READ(ns, ns.inum) == pid_namespace ? READ(n, nr) : 0;
}

/* number_of is the number of a thread group, by the address of its leader; 0 if it has
 * none: it lives outside, or more than three levels below. There is no loop, and the
 * verifier looks at the function alone: 6.1 did not come to an end. */
__attribute__((noinline)) u32 number_of(u64 leader)
{
	struct pid *pid = READ((struct task_struct *)leader, thread_pid);
	u32 level = READ(pid, level);
	u32 n = number_at(pid, level);
	if (!n && level >= 1)
		n = number_at(pid, level - 1);
	if (!n && level >= 2)
		n = number_at(pid, level - 2);
	if (!n && level >= 3)
		n = number_at(pid, level - 3);
	return n;
}

/* read_owner reads a task whose type the verifier knows: plain loads, which
 * cannot fault either, and no call for each field. */
INLINE void read_owner(struct owner *o, struct task_struct *task, u8 via)
{
	struct task_struct *leader = task->group_leader;

	o->start = leader->start_boottime;
	o->cgroup = task->cgroups->dfl_cgrp->kn->id;
	o->pid = pid_namespace ? number_of((u64)READ(task, group_leader)) : task->tgid;
	o->tid = task->pid;
	o->uid = task->cred->euid.val;
	o->via = via;
	u64 *comm = (void *)__builtin_preserve_access_index(&leader->comm);
	u64 *to = (void *)o->comm;
	to[0] = comm[0];
	to[1] = comm[1];
}

INLINE struct slot *slot_of(u64 cookie)
{
	u32 i = cookie & (SLOTS - 1);
	return bpf_map_lookup_elem(&slots, &i);
}

/* owner_of is the owner of a socket that lives as long as the caller looks. */
INLINE struct owner *owner_of(u64 cookie)
{
	struct slot *s = slot_of(cookie);
	if (!cookie)
		return NULL;
	if (s && s->cookie == cookie)
		return &s->owner;
	if (!s || !s->elsewhere)
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

/* put_elsewhere is for a socket whose slot is taken. */
INLINE void put_elsewhere(struct slot *s, u64 cookie, struct owner *o, bool is_new)
{
	__sync_fetch_and_add(&s->elsewhere, 1); /* before, or nobody looks for it */
	/* An int: before 6.4 the upper half of the result is not its sign. */
	int err = bpf_map_update_elem(&owners, &cookie, o, BPF_NOEXIST);
	if (err)
		__sync_fetch_and_add(&s->elsewhere, -1);
	if (err == -EEXIST)
		bpf_map_update_elem(&owners, &cookie, o, BPF_ANY);
	else if (err)
		count(COUNT_OWNER_FAILED);
	else if (is_new)
		count(COUNT_OWNER_IN);
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
	if (s)
		put_elsewhere(s, cookie, o, !old);
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
	/* Also where it had a slot: two CPUs may have put it at the same time. To look
	 * takes no lock, unlike to delete. */
	if (s && s->elsewhere && bpf_map_lookup_elem(&owners, &cookie) && !bpf_map_delete_elem(&owners, &cookie)) {
		__sync_fetch_and_add(&s->elsewhere, -1);
		count(COUNT_OWNER_OUT);
	}
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

INLINE u32 *head_of(struct tuple *t)
{
	u64 h = plot_seed, *w = (u64 *)t;

	_Static_assert(sizeof(*t) == 6 * sizeof(u64), "a tuple has no holes");
#pragma unroll
	for (int i = 0; i < 6; i++) {
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	u32 i = h & (HEADS - 1);

	return bpf_map_lookup_elem(&heads, &i);
}

INLINE struct plot *plot_of(u32 ticket)
{
	u32 i = ticket & (PLOTS - 1);

	return bpf_map_lookup_elem(&graves, &i);
}

INLINE u64 *tickets(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&buried, &zero);
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
 * is none, and so are those before it: the additions of 0 are barriers. */
INLINE void find_grave(struct grave *to, struct tuple *t)
{
	u32 *head = head_of(t);
	u64 *given = tickets();

	if (!head || !given)
		return;
	u32 ticket = *head;
	for (int i = 0; i < CHAIN && ticket; i++) {
		struct plot *p = plot_of(ticket);
		if (!p || (u32)*given - ticket >= PLOTS)
			return;
		u64 died = __sync_fetch_and_add(&p->died, 0);
		u32 next = p->next;
		if (!died)
			return;
		if (!same_tuple(&p->tuple, t)) {
			ticket = next;
			continue;
		}
		to->owner = p->owner;
		to->cookie = p->cookie;
		to->unread = p->unread;
		to->unacked = p->unacked;
		to->err = p->err;
		to->state = p->state;
		to->died = died;
		if (__sync_fetch_and_add(&p->died, 0) != died)
			__builtin_memset(to, 0, sizeof(*to));
		return;
	}
}

/* tuple_of reads a socket whose type the verifier knows: plain loads. */
INLINE void tuple_of(struct tuple *t, struct sock *sk, struct tcp_sock *tp)
{
	struct net *net = sk->__sk_common.skc_net.net;

	t->net = HAS(net, net_cookie) ? net->net_cookie : net->ns.inum;
	t->netns = net->ns.inum;
	t->lport = ntohs(tp->inet_conn.icsk_inet.inet_sport);
	t->rport = ntohs(sk->__sk_common.skc_dport);
	if (sk->__sk_common.skc_family == AF_INET) {
		map4(t->laddr, sk->__sk_common.skc_rcv_saddr ?: tp->inet_conn.icsk_inet.inet_saddr);
		map4(t->raddr, sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(t->laddr, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_rcv_saddr));
		bpf_probe_read_kernel(t->raddr, 16, __builtin_preserve_access_index(&sk->__sk_common.skc_v6_daddr));
	}
}

/* bury keeps what is known of a socket that dies. It is done for each connection. */
INLINE void bury(struct sock *sk, int state)
{
	struct tuple t = {};
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	u64 *given = tickets();

	if (!tp || !given)
		return;
	tuple_of(&t, sk, tp);
	u32 *head = head_of(&t);
	u64 before = __sync_fetch_and_add(given, 1);
	u32 ticket = before + 1;
	struct plot *p = plot_of(ticket);
	if (!p || !head)
		return;
	if (!__sync_lock_test_and_set(&p->died, 0) && before >= PLOTS) {
		count(COUNT_UNBURIED); /* somebody is still writing there, a whole round behind */
		return;
	}
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	struct owner *o = owner_of(cookie);
	p->tuple = t;
	p->cookie = cookie;
	if (o)
		p->owner = *o;
	else if (!inherited(&p->owner, sk, &t))
		__builtin_memset(&p->owner, 0, sizeof(p->owner));
	p->err = sk->sk_err;
	p->unread = tp->rcv_nxt - tp->copied_seq;
	if (p->unread && sk->__sk_common.skc_flags & 1UL << SOCK_DONE)
		p->unread--;
	p->unacked = tp->write_seq - tp->snd_una;
	p->state = state;
	p->next = __sync_lock_test_and_set(head, ticket);
	__sync_lock_test_and_set(&p->died, bpf_ktime_get_boot_ns());
}
