/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

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

/* How many there were since the start: mostly none, and then nobody looks. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} overflow SEC(".maps");

/* Sockets that are no more, by tuple: a set of a few for each value of a hash, the
 * oldest of which makes room. An LRU map does the same with locks and lists, and
 * touches much more memory, for each connection that ends. */
#define PLOTS 8192
#define WAYS 4

struct plot {
	u64 busy;
	u64 died[WAYS]; /* 0: there is none, or it is being written */
	struct tuple tuple[WAYS];
	struct grave grave[WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PLOTS);
	__type(key, u32);
	__type(value, struct plot);
} graves SEC(".maps");

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
#define COUNT_BURIED (COUNT_LOST + 4)
#define COUNT_UNBURIED (COUNT_LOST + 5)
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
