//go:build !race

package verdict

const floodPackets = 1_500_000
