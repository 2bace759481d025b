//go:build !race

package afpacket

const raced = false
