//go:build !race

package verdict

const floodPackets = 2_500_000
