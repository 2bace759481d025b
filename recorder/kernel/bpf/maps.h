/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The network namespaces that somebody records, as bits by inode number. Another
 * one of the same bits is taken for one of them, which user space sorts out. */
#define NAMESPACES 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NAMESPACES / 64);
	__type(key, u32);
	__type(value, u64);
} watched SEC(".maps");

/* is_watched keeps what others do from costing more than this, and from using up
 * the tokens of those who are watched. */
INLINE bool is_watched(u32 netns)
{
	u32 i = netns / 64 & (NAMESPACES / 64 - 1);
	u64 *bits = bpf_map_lookup_elem(&watched, &i);

	return bits && *bits >> (netns & 63) & 1;
}

/* Owners of live sockets by cookie, which is unique on the host and counts up: each
 * has a slot of its own, unless an older socket still lives there. That costs no
 * lock and no memory that has to be found, for each connection. */
#define SLOTS 8192
#define SLOT_BUSY (~0ULL)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Those that found their slot taken. Not an LRU: that would forget the long idle
 * connection that is the one to be reset. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, u64);
	__type(value, struct owner);
} owners SEC(".maps");

/* Sockets that are no more: a ring of plots, each in two cache lines, and for each
 * value of a hash of the tuple the ticket of the latest, which leads to the one
 * before. An LRU map does the same with locks and lists, and a table of sets touches
 * three times the memory, for each connection that ends. */
#define PLOTS 16384
#define HEADS 16384
#define CHAIN 8 /* that many of one hash are looked at; their number is 1 on average */

struct plot {
	u64 died; /* 0: there is none, or it is being written */
	u64 cookie;
	struct tuple tuple;
	struct owner owner;
	u32 unread, unacked;
	u32 next; /* ticket of the one before, of this hash */
	u16 err;
	u8 state;
	u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PLOTS);
	__type(key, u32);
	__type(value, struct plot);
} graves SEC(".maps");

/* Tickets count from 1: 0 is nobody's. They wrap around after 2^32 burials, and the
 * one that is 0 then cannot be found. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HEADS);
	__type(key, u32);
	__type(value, u32);
} heads SEC(".maps");

/* How many tickets were given: sockets that were buried. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} buried SEC(".maps");

struct listener_key {
	u64 net; /* as in struct tuple */
	u8 addr[16];
	u16 port;
	u16 pad[3];
};

struct listener {
	struct owner owner;
	u64 cookie;
	s32 alive;  /* sockets that listen here now (SO_REUSEPORT) */
	u32 shared; /* by more than one process: a connection's is known at accept only */
};

/* Listeners, kept when they are gone: who had the port that refuses now. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listener_key);
	__type(value, struct listener);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* One bucket of tokens for each kind, so that a port scan does not hide the
 * application that aborts its connections. */
#define BUCKET_SENT 0
#define BUCKET_STRAY 1 /* resets that no connection's socket sent */
#define BUCKET_RECEIVED 2
#define BUCKET_ERROR 3
#define BUCKET_DROP 4
#define BUCKET_REJECT 5
#define BUCKETS 6

struct bucket {
	u64 credit; /* ns */
	u64 last;   /* boot clock, ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct suppressed_key {
	u32 netns;
	u32 reason;
	u16 port;
	u8 kind;
	u8 pad;
};

/* Events beyond the tokens. User space takes the entries out. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct suppressed_key);
	__type(value, u64);
} suppressed SEC(".maps");

/* The cookie whose reset is told whatever the tokens say. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} expecting SEC(".maps");

#define COUNT_EVENTS 0                     /* + bucket */
#define COUNT_SUPPRESSED BUCKETS           /* + bucket */
#define COUNT_LOST (2 * BUCKETS)           /* ring full */
#define COUNT_OWNER_IN (COUNT_LOST + 1)
#define COUNT_OWNER_OUT (COUNT_LOST + 2)
#define COUNT_OWNER_FAILED (COUNT_LOST + 3)
#define COUNT_UNBURIED (COUNT_LOST + 4)
#define COUNT_UNTABLED (COUNT_LOST + 5)
#define COUNTS (COUNT_LOST + 6)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

/* Atomic although per CPU: an interrupt may run another program in between. */
INLINE void count(u32 what)
{
	u64 *n = bpf_map_lookup_elem(&counts, &what);
	if (n)
		__sync_fetch_and_add(n, 1);
}
