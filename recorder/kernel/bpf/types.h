/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fields of the kernel's structures that the programs read, and no others.
 * Order and offsets are the running kernel's: CO-RE finds each field by name.
 */
#pragma once

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	u8 in6_u[16];
};

struct ns_common {
	u32 inum;
};

struct net {
	struct ns_common ns;
	u64 net_cookie; /* since 5.12 */
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	s64 counter;
} atomic64_t;

struct kernfs_node {
	u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct socket {
	struct sock *sk;
};

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	u8 skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
	struct sock *skc_listener;
};

struct sock {
	struct sock_common __sk_common;
	int sk_err;
	struct socket *sk_socket;
	u16 sk_protocol;
	u8 sk_shutdown;
	unsigned long sk_lingertime;
	u32 sk_ack_backlog;
	u32 sk_max_ack_backlog;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	u32 inet_saddr;
	u16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 copied_seq;
	u32 rcv_nxt;
	u32 snd_nxt;
	u32 snd_una;
	u32 write_seq;
};

struct net_device {
	possible_net_t nd_net;
};

struct dst_entry {
	struct net_device *dev;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	u16 transport_header;
	u16 network_header;
	u32 tail;
	unsigned char *head;
};

typedef struct {
	u32 val;
} kuid_t;

struct cred {
	kuid_t euid;
};

struct signal_struct {
	int group_exit_code;
	void *oom_mm;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	u32 level;
	struct upid numbers[1]; /* one for each namespace from the initial one to level */
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct file {
	void *private_data;
};

struct fdtable {
	u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	u32 flags;
	int pid;
	int tgid;
	int exit_code;
	u64 start_boottime;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	char comm[16];
	struct cred *cred;
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct files_struct *files;
};

#pragma clang attribute pop

/* The context of iter/task_file (kernel/bpf/task_iter.c). */
struct task_file_ctx {
	void *meta;
	struct task_struct *task;
	u32 fd;
	u32 : 32;
	struct file *file;
};

/* The context of a syscalls/sys_exit_ tracepoint (struct syscall_trace_exit). */
struct sys_exit_ctx {
	u64 common;
	s64 nr;
	s64 ret;
};

/* enum in include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

/* bits of sk_flags, enum sock_flags in include/net/sock.h */
#define SOCK_DEAD 0
#define SOCK_DONE 1
#define SOCK_LINGER 4

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define RCV_SHUTDOWN 1
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000
#define SKB_DST_PTRMASK (~1UL) /* include/linux/skbuff.h */
#define NF_INET_LOCAL_OUT 3
#define TH_RST 0x04
