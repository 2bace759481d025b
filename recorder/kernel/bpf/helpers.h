/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few BPF helpers and map definitions in use, so that a compiler is all that
 * is needed to build: numbers from include/uapi/linux/bpf.h, which never change.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;
typedef _Bool bool;

#define NULL ((void *)0)
#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

/* enum bpf_map_type */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_F_NO_PREALLOC 1

/* flags of bpf_map_update_elem */
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define EEXIST 17

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*bpf_get_socket_cookie)(void *sk) = (void *)46;
static long (*bpf_probe_read_kernel)(void *dst, u32 size, const void *from) = (void *)113;
static struct tcp_sock *(*bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static void *(*bpf_ringbuf_reserve)(void *ringbuf, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static struct socket *(*bpf_sock_from_file)(void *file) = (void *)162;
static long (*bpf_get_func_ret)(void *ctx, u64 *value) = (void *)184;

/* READ is p->field by a read that cannot fault, at the offset that this kernel's
 * BTF gives the field (CO-RE); 0 if p cannot be read. */
#define READ(p, field)                                                               \
	({                                                                           \
		typeof((p)->field) v_ = {};                                          \
		bpf_probe_read_kernel(&v_, sizeof(v_),                               \
				      __builtin_preserve_access_index(&(p)->field)); \
		v_;                                                                  \
	})

/* HAS tells whether this kernel's structure has the field (BPF_FIELD_EXISTS). */
#define HAS(p, field) __builtin_preserve_field_info((p)->field, 2)

/* SIZE is that of the running kernel's structure (BPF_TYPE_SIZE). */
#define SIZE(type) __builtin_preserve_type_info(*(type *)0, 1)

#define barrier(x) asm volatile("" : "+r"(x))
#define ntohs(x) __builtin_bswap16(x)
