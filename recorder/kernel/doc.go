// Package kernel will hold the eBPF programs that give a reset its reason, its
// socket and its owner. Until then every verdict says that this evidence is
// missing; nothing else may depend on it.
package kernel
