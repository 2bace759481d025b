//go:build !race

package verdict

const floodPackets = 5_000_000
