/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Making of events, and the token bucket before it. */
#pragma once

/* One token, and a full bucket, as time: rate 200/s is a token each 5 ms. */
const volatile u64 token_ns = 5000000;
const volatile u64 bucket_ns = 1000000000;

INLINE bool allowed(u32 which)
{
	struct bucket *b = bpf_map_lookup_elem(&buckets, &which);
	if (!b)
		return 0;
	u64 now = bpf_ktime_get_boot_ns();
	u64 credit = b->credit + (now - b->last);
	b->last = now;
	if (credit > bucket_ns)
		credit = bucket_ns;
	if (credit < token_ns) {
		b->credit = credit;
		return 0;
	}
	b->credit = credit - token_ns;
	return 1;
}

INLINE void suppress(u32 bucket, u8 kind, u32 reason, struct tuple *t)
{
	struct suppressed_key k = {.netns = t->netns, .reason = reason, .port = t->lport, .kind = kind};
	count(COUNT_SUPPRESSED + bucket);
	u64 *n = bpf_map_lookup_elem(&suppressed, &k);
	if (!n) {
		u64 zero = 0;
		bpf_map_update_elem(&suppressed, &k, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&suppressed, &k);
	}
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		count(COUNT_UNTABLED);
}

/* begin is a new event, or NULL: nobody watches there, or there is no token or no
 * room, which is counted. */
INLINE struct event *begin(u32 bucket, bool free, u8 kind, u32 reason, struct tuple *t)
{
	if (!is_watched(t->netns))
		return NULL;
	if (!allowed(bucket) && !free) {
		suppress(bucket, kind, reason, t);
		return NULL;
	}
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(COUNT_LOST);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = kind;
	e->reason = reason;
	e->tuple = *t;
	count(COUNT_EVENTS + bucket);
	return e;
}

INLINE void expect(u64 cookie)
{
	u32 zero = 0;
	u64 *slot = bpf_map_lookup_elem(&expecting, &zero);
	if (slot)
		*slot = cookie;
}

INLINE bool expected(u64 cookie)
{
	u32 zero = 0;
	u64 *slot = bpf_map_lookup_elem(&expecting, &zero);
	if (!slot || !cookie || *slot != cookie)
		return 0;
	*slot = 0;
	return 1;
}

INLINE void fill_sock(struct event *e, struct sock *sk)
{
	unsigned long flags = READ(sk, __sk_common.skc_flags);
	e->sock = 1;
	e->err = READ(sk, sk_err);
	e->shutdown = READ(sk, sk_shutdown);
	e->orphan = !READ(sk, sk_socket);
	e->linger = flags >> SOCK_LINGER & 1;
	e->linger_jiffies = READ(sk, sk_lingertime);
	e->cgroup = cgroup_of(READ(sk, sk_cgrp_data.cgroup));
	if (e->state == TCP_LISTEN) {
		e->accept_queue = READ(sk, sk_ack_backlog);
		e->backlog = READ(sk, sk_max_ack_backlog);
		return;
	}
	e->snd_nxt = READ((struct tcp_sock *)sk, snd_nxt);
	e->rcv_nxt = READ((struct tcp_sock *)sk, rcv_nxt);
	e->unread = unread_of(sk);
	e->unacked = unacked_of(sk);
}

/* fill_past adds who lived at the tuple, and who had the port. */
INLINE void fill_past(struct event *e)
{
	struct tuple t = e->tuple;
	find_grave(&e->grave, &t);
	struct listener *l = find_listener(&t);
	if (l)
		e->listener = l->owner;
}

INLINE void find_owner(struct event *e, struct sock *sk, u8 state)
{
	u64 cookie = e->cookie;
	if (!sk)
		return;
	if (state == TCP_NEW_SYN_RECV)
		cookie = cookie_of(READ(sk, __sk_common.skc_listener));
	struct owner *o = owner_of(cookie);
	if (!o) {
		if (is_full(sk, state) && state != TCP_LISTEN)
			inherited(&e->owner, sk, &e->tuple);
		return;
	}
	e->owner = *o;
	if (state == TCP_NEW_SYN_RECV)
		e->owner.via = VIA_INHERIT;
}

/* fill_actor notes the current process. User space believes it only where it can
 * have been the cause. */
INLINE void fill_actor(struct event *e)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct signal_struct *signal = task->signal;
	u32 flags = task->flags;
	read_owner(&e->actor, task, 0);
	e->kthread = !!(flags & PF_KTHREAD);
	e->exiting = !!(flags & PF_EXITING);
	e->exit_code = signal->group_exit_code ?: task->exit_code;
	e->oom = signal->oom_mm != NULL;
}
