/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs and user space exchange. Addresses are IPv6, IPv4 is mapped
 * (RFC 4291 section 2.5.5.2): a socket may be AF_INET6 and its packets IPv4. */
#pragma once

/* kinds of events */
#define RESET_SENT 1
#define RESET_RECEIVED 2
#define SOCKET_ERROR 3
#define DROP 4
#define REJECT 5

/* how an owner is known */
#define VIA_CONNECT 1
#define VIA_ACCEPT 2
#define VIA_FIRST_USE 3
#define VIA_INHERIT 4
#define VIA_LISTEN 5
#define VIA_SEED 6

struct owner {
	u64 start;  /* start_boottime of the group leader, ns: with pid it names a process for good */
	u64 cgroup; /* version 2 */
	u32 pid;    /* of the thread group, in the recorder's PID namespace; 0: it has none there */
	u32 tid;
	u32 uid; /* effective, in the initial user namespace */
	u8 via;  /* 0: there is no owner here */
	u8 pad[3];
	char comm[16]; /* of the group leader */
};

/* A live socket's owner, where there was room in the table of slots. */
struct slot {
	u64 cookie;    /* 0: free */
	u64 elsewhere; /* cookies that found it taken: mostly none, and then nobody looks */
	struct owner owner;
};

struct tuple {
	u64 net;   /* SO_NETNS_COOKIE: the inode numbers of dead namespaces are used again */
	u32 netns; /* inode number */
	u16 lport, rport;
	u8 laddr[16], raddr[16];
};

struct grave {
	struct owner owner;
	u64 died; /* boot clock, ns; 0: there is no grave here */
	u64 cookie;
	u32 err;
	u32 unread, unacked;
	u32 state; /* before it died */
};

#define SEGMENT_PRESENT 1
#define SEGMENT_OUTGOING 2 /* a socket of this host sent it */

struct segment {
	u32 seq, ack, payload;
	u16 flags;
	u8 ttl;
	u8 how; /* 0: there is no segment here */
};

struct event {
	u64 time; /* boot clock, ns */
	u64 cookie;
	u64 cgroup;   /* of the socket */
	u64 location; /* of a drop */
	u64 linger_jiffies;
	u32 reason;
	u32 err;
	u32 snd_nxt, rcv_nxt;
	u32 unread, unacked;
	u32 accept_queue, backlog;
	u32 exit_code;
	u8 kind;
	u8 state;
	u8 shutdown;
	u8 sock;   /* there was a full socket to read from */
	u8 orphan; /* no file holds it */
	u8 linger;
	u8 kthread, exiting, oom; /* of the actor */
	u8 pad[3];
	struct tuple tuple;
	struct segment seg;
	struct owner owner;
	struct owner actor; /* current; only without segment */
	struct owner listener;
	struct grave grave;
};
