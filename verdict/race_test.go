//go:build race

package verdict

// floodPackets is less where the race detector makes each packet cost 30 times.
const floodPackets = 400_000
