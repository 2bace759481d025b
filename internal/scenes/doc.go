// Package scenes makes TCP resets happen for real, each kind with known truth:
// who sent it, why, which process is to blame, and what the other end saw. It
// is for tests and lab programs only and must not be imported by anything that
// ships. It judges nothing: what should be made of a reset is not its business.
//
// A [Stage] is three network namespaces in a row: client, router, server. A
// [Scene] plays on it. Its actors are processes of their own (they are to be
// killed, to own sockets, to hand them on): the running program executed again,
// so every program that plays scenes calls [Main] first. Steps wait for what
// the kernel shows (queues, states, counters), never for time to pass.
//
// Besides the kernel it needs root, and for some scenes the tools that they
// list; it builds without cgo and runs from a static binary in a bare guest.
package scenes
