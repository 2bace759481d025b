//go:build race

package afpacket

// raced tells that the race detector slows everything down.
const raced = true
