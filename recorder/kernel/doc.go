// Package kernel runs the eBPF programs that make the kernel tell about resets:
// which it sent or took, for what reason, on which socket, and which process owned
// it, also when that process is dead. It is optional at run time: what a kernel
// does not allow costs hooks, and Level says so. It judges nothing, sends nothing,
// and reads neither payload nor the memory of a process.
package kernel

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -no-global-types -type event -type owner -type slot -type grave -type tuple -type suppressed_key -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror" bpf bpf/kernel.c
