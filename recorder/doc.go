// Package recorder is the flight buffer: it takes packet headers from a Source,
// cuts them to what may be kept, and holds the newest of them in a fixed amount
// of memory until somebody freezes a stretch of time.
//
// One goroutine writes: the one that Source.Run calls Add and Tick on. It takes
// no lock, uses no channel and allocates nothing per packet, and it never waits
// for a Freeze. The package must not open sockets, judge what it sees, or write
// to disk.
package recorder
