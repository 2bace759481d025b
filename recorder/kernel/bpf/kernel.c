// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the kernel knows of a TCP reset: the reason, the socket and the process
 * that owned it. The programs only read; they decide nothing that user space can
 * decide as well. A program that this kernel does not take costs one hook.
 *
 * Socket pointers of raw tracepoints may be NULL, request or time-wait sockets
 * (trace_tcp_send_reset): they are read with READ, never followed.
 */
#include "helpers.h"
#include "types.h"
#include "record.h"
#include "maps.h"
#include "read.h"
#include "owner.h"
#include "emit.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* So that the type is in the object, for user space. */
const struct event *event_type __attribute__((unused));

/* Arguments of the running kernel's tracepoints, from its BTF: the verifier prunes
 * the branch that this kernel has not. */
const volatile u8 send_reset_args = 3; /* the reason came with 6.10 (b533fb9cf4f7) */
const volatile u8 kfree_skb_args = 4;  /* rx_sk came with 6.11 (c53795d48ee8) */

/* What to tell of a dropped segment, by number of skb_drop_reason. */
#define DROP_REASONS 256
#define WANT_RST 1    /* if it is a RST */
#define WANT_TCP 2    /* if it is TCP */
#define WANT_LISTEN 4 /* if a listener refused it */
#define WANT_STRAY 8  /* as a reset sent: kernels without a better hook */
const volatile u8 drop_want[DROP_REASONS];

INLINE int reset_sent(struct sock *sk, struct sk_buff *skb, u32 reason)
{
	struct tuple t = {};
	struct segment s = {};
	u8 state = sk ? READ(sk, __sk_common.skc_state) : 0;
	bool full = is_full(sk, state);
	bool stray = !full || state == TCP_LISTEN;
	u64 cookie = sk ? cookie_of(sk) : 0;

	if (skb && read_segment(skb, &t, &s, 1))
		set_net(&t, net_of(sk, skb));
	else if (full)
		read_tuple(sk, &t);
	struct event *e = begin(stray ? BUCKET_STRAY : BUCKET_SENT, expected(cookie), RESET_SENT, reason, &t);
	if (!e)
		return 0;
	e->seg = s;
	e->cookie = cookie;
	e->state = state;
	if (full)
		fill_sock(e, sk);
	find_owner(e, sk, state);
	/* An orphan is destroyed, and so forgotten, before the reset for its late data. */
	if (stray || !e->owner.via)
		fill_past(e);
	if (!skb)
		fill_actor(e);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("raw_tp/tcp_send_reset")
int send_reset(u64 *ctx)
{
	u32 reason = 0;
	if (send_reset_args >= 3)
		reason = (u32)ctx[2];
	return reset_sent((void *)ctx[0], (void *)ctx[1], reason);
}

/* Before 6.10 the tracepoint tells of full sockets only (19822a980e19). */
INLINE int old_send_reset(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];
	struct tuple t = {};
	struct segment s = {};
	if (sk && is_full(sk, READ(sk, __sk_common.skc_state)))
		return 0;
	if (!skb || !read_segment(skb, &t, &s, 1) || s.flags & TH_RST)
		return 0;
	return reset_sent(sk, skb, 0);
}

SEC("fentry/tcp_v4_send_reset")
int old_send_reset4(u64 *ctx)
{
	return old_send_reset(ctx);
}

SEC("fentry/tcp_v6_send_reset")
int old_send_reset6(u64 *ctx)
{
	return old_send_reset(ctx);
}

INLINE int about_socket(struct sock *sk, u8 kind, u32 bucket)
{
	struct tuple t = {};
	read_tuple(sk, &t);
	struct event *e = begin(bucket, 0, kind, 0, &t);
	if (!e)
		return 0;
	e->cookie = cookie_of(sk);
	e->state = READ(sk, __sk_common.skc_state);
	fill_sock(e, sk);
	find_owner(e, sk, e->state);
	/* tcp_rcv_state_process() calls tcp_reset() on itself for data after
	 * shutdown, and a reset sent follows at once: keep it together with this. */
	if (kind == RESET_RECEIVED && e->shutdown & RCV_SHUTDOWN)
		expect(e->cookie);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int receive_reset(u64 *ctx)
{
	return about_socket((void *)ctx[0], RESET_RECEIVED, BUCKET_RECEIVED);
}

SEC("tp_btf/inet_sk_error_report")
int error_report(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	if (sk->sk_protocol != IPPROTO_TCP || !sk->sk_err)
		return 0;
	return about_socket(sk, SOCKET_ERROR, BUCKET_ERROR);
}

SEC("raw_tp/kfree_skb")
int drop(u64 *ctx)
{
	u64 reason = (u32)ctx[2];
	barrier(reason); /* the verifier must see the bound in the register that is used */
	if (reason >= DROP_REASONS)
		return 0;
	u8 want = drop_want[reason];
	if (!want)
		return 0;
	struct sk_buff *skb = (void *)ctx[0];
	struct sock *sk = NULL;
	if (kfree_skb_args >= 4)
		sk = (void *)ctx[3];
	u8 state = sk ? READ(sk, __sk_common.skc_state) : 0;
	struct tuple t = {};
	struct segment s = {};
	if (!read_segment(skb, &t, &s, 0))
		return 0;
	bool rst = s.flags & TH_RST;
	if (want & WANT_STRAY && !rst)
		return reset_sent(NULL, skb, 0);
	if (!(want & WANT_TCP || (want & WANT_RST && rst) || (want & WANT_LISTEN && state == TCP_LISTEN)))
		return 0;
	set_net(&t, net_of(sk, skb));
	struct event *e = begin(BUCKET_DROP, 0, DROP, reason, &t);
	if (!e)
		return 0;
	e->seg = s;
	e->state = state;
	e->location = ctx[1];
	if (sk)
		e->cookie = cookie_of(sk);
	if (is_full(sk, state))
		fill_sock(e, sk);
	find_owner(e, sk, state);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* void nf_send_reset(struct net *, struct sock *, struct sk_buff *oldskb, int hook) */
INLINE int reject(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[2];
	struct tuple t = {};
	struct segment s = {};
	if (!read_segment(skb, &t, &s, 1) || s.flags & TH_RST)
		return 0;
	if ((u32)ctx[3] == NF_INET_LOCAL_OUT)
		turn(&t, &s);
	set_net(&t, (struct net *)ctx[0]);
	struct event *e = begin(BUCKET_REJECT, 0, REJECT, 0, &t);
	if (!e)
		return 0;
	e->seg = s;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("fentry/nf_send_reset")
int reject4(u64 *ctx)
{
	return reject(ctx);
}

SEC("fentry/nf_send_reset6")
int reject6(u64 *ctx)
{
	return reject(ctx);
}

SEC("tp_btf/inet_sock_set_state")
int set_state(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old = (int)ctx[1], new = (int)ctx[2];
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new == TCP_SYN_SENT) {
		if (in_watched(sk))
			put_current(bpf_get_socket_cookie(sk), VIA_CONNECT);
	} else if (new == TCP_LISTEN) {
		struct owner o = {};
		u64 cookie = bpf_get_socket_cookie(sk);
		read_owner(&o, bpf_get_current_task_btf(), VIA_LISTEN);
		put_owner(cookie, &o);
		listener_came(sk, cookie, &o);
	} else if (new == TCP_ESTABLISHED && old == TCP_SYN_RECV) {
		/* So that it has a cookie. Not before: inet_csk_clone_lock() overwrites it. */
		bpf_get_socket_cookie(sk);
	} else if (new == TCP_CLOSE && old == TCP_LISTEN) {
		listener_went(sk);
	} else if (new == TCP_CLOSE && old != TCP_CLOSE && in_watched(sk)) {
		bury(sk, old);
	}
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int destroy_sock(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	forget_owner(sk->__sk_common.skc_cookie.counter);
	return 0;
}

INLINE int accepted(struct sock *sk)
{
	if (sk && READ(sk, sk_protocol) == IPPROTO_TCP && is_watched(netns_of(sk)))
		put_current(cookie_of(sk), VIA_ACCEPT);
	return 0;
}

SEC("fexit/inet_csk_accept")
int accept_exit(u64 *ctx)
{
	u64 sk = 0; /* the number of arguments changed after 6.8 */
	bpf_get_func_ret(ctx, &sk);
	return accepted((struct sock *)sk);
}

/* What accept(2) returned is a descriptor of the caller: find its socket. */
INLINE int accept_returned(struct sys_exit_ctx *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct file *file = NULL;
	if (ctx->ret < 0)
		return 0;
	struct fdtable *fdt = task->files->fdt;
	if (ctx->ret >= fdt->max_fds)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), fdt->fd + ctx->ret);
	struct socket *sock = READ(file, private_data);
	return accepted(READ(sock, sk));
}

SEC("tracepoint/syscalls/sys_exit_accept")
int accept_syscall(struct sys_exit_ctx *ctx)
{
	return accept_returned(ctx);
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int accept4_syscall(struct sys_exit_ctx *ctx)
{
	return accept_returned(ctx);
}

/* Without a hook on accept, who first uses the connection is taken for its owner. */
INLINE int used(struct sock *sk)
{
	if (sk->sk_protocol != IPPROTO_TCP || !in_watched(sk))
		return 0;
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	if (cookie && !owner_of(cookie))
		put_current(cookie, VIA_FIRST_USE);
	return 0;
}

SEC("tp_btf/sock_send_length")
int send_length(u64 *ctx)
{
	return used((void *)ctx[0]);
}

SEC("tp_btf/sock_recv_length")
int recv_length(u64 *ctx)
{
	return used((void *)ctx[0]);
}

/* seed finds the owners of the sockets that were there before. The first process
 * that holds one is taken, but not init, which keeps the listeners of others. */
SEC("iter/task_file")
int seed(struct task_file_ctx *ctx)
{
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task;
	if (!file || !task)
		return 0;
	struct socket *sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	struct sock *sk = __builtin_preserve_access_index(sock->sk);
	if (!sk || READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	u8 state = READ(sk, __sk_common.skc_state);
	if (state == TCP_CLOSE || (state != TCP_LISTEN && !is_watched(netns_of(sk))))
		return 0;
	u64 cookie = bpf_get_socket_cookie(sk);
	struct owner o = {};
	read_owner(&o, task, VIA_SEED);
	struct owner *known = owner_of(cookie);
	if (known && !(known->via == VIA_SEED && known->pid == 1))
		return 0;
	put_owner(cookie, &o);
	if (state == TCP_LISTEN)
		listener_came(sk, cookie, &o);
	return 0;
}
