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

INLINE void put_owner(u64 cookie, struct owner *o)
{
	if (!cookie)
		return;
	/* An int: before 6.4 the upper half of the result is not its sign. */
	int err = bpf_map_update_elem(&owners, &cookie, o, BPF_NOEXIST);
	if (!err)
		count(COUNT_OWNER_IN);
	else if (err == -EEXIST)
		err = bpf_map_update_elem(&owners, &cookie, o, BPF_ANY);
	if (err)
		count(COUNT_OWNER_FAILED);
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

/* inherit gives a connection that waits to be accepted its listener's owner,
 * unless the port has several. */
INLINE void inherit(struct sock *sk, u64 cookie)
{
	struct tuple t = {};
	read_tuple(sk, &t);
	struct listener *l = find_listener(&t);
	if (!l || l->shared || l->alive <= 0)
		return;
	struct owner o = l->owner;
	o.via = VIA_INHERIT;
	if (cookie && !bpf_map_update_elem(&owners, &cookie, &o, BPF_NOEXIST))
		count(COUNT_OWNER_IN);
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

/* bury keeps what is known of a socket that dies. */
INLINE void bury(struct sock *sk, int state)
{
	struct tuple t = {};
	struct grave g = {};
	read_tuple(sk, &t);
	g.cookie = cookie_of(sk);
	struct owner *o = bpf_map_lookup_elem(&owners, &g.cookie);
	if (o)
		g.owner = *o;
	g.died = bpf_ktime_get_boot_ns();
	g.err = READ(sk, sk_err);
	g.unread = unread_of(sk);
	g.unacked = unacked_of(sk);
	g.state = state;
	if (!bpf_map_update_elem(&graves, &t, &g, BPF_ANY))
		count(COUNT_BURIED);
}
