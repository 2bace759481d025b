package main

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tcpcoroner/evidence"
	"tcpcoroner/recorder"
)

const (
	fullWindow  = 256 << 20
	fullResets  = 10_000
	fullPackets = 12_000_000 // more than a full window holds
)

// trafficOf makes segment i of steady traffic: 3,000 connections that take turns,
// which the server answers with data. Every packets/resets segments one is reset.
func trafficOf(i int, noise *rand.Rand, header []byte) evidence.Direction {
	clear(header)
	conn, step := i%3000, i/3000
	port := uint16(20000 + conn)
	flags := evidence.ACK
	if every := fullPackets / fullResets; i%every == 0 {
		port, flags = uint16(1024+i/every%18000), evidence.ACK|evidence.RST
	}
	header[0], header[8], header[9], header[12], header[16] = 0x45, 64, 6, 10, 10
	header[13], header[17] = byte(conn>>8), 200
	direction := evidence.Received
	src, dst := port, uint16(443)
	if step%2 == 1 {
		direction, src, dst = evidence.Sent, dst, src
		copy(header[12:16], []byte{10, 200, 0, 0})
		copy(header[16:20], []byte{10, byte(conn >> 8), 0, 0})
	}
	binary.BigEndian.PutUint16(header[2:], uint16(40+noise.IntN(1400)))
	binary.BigEndian.PutUint16(header[4:], uint16(step))
	binary.BigEndian.PutUint16(header[20:], src)
	binary.BigEndian.PutUint16(header[22:], dst)
	binary.BigEndian.PutUint32(header[24:], uint32(step*700+noise.IntN(700)))
	binary.BigEndian.PutUint32(header[28:], uint32(step*600+noise.IntN(600)))
	header[32], header[33], header[34] = 0x50, byte(flags), 1
	return direction
}

// traffic is a source of it.
type traffic struct{ recorder.Replay }

func (*traffic) Run(ctx context.Context, sink recorder.Sink) error {
	noise := rand.New(rand.NewPCG(1, 2))
	header := make([]byte, 40)
	m := recorder.Meta{Nanos: 1e18, Path: recorder.Path{Interface: 2, LinkType: 1}}
	for i := range fullPackets {
		m.Path.Direction = trafficOf(i, noise, header)
		m.WireBytes = uint32(binary.BigEndian.Uint16(header[2:]))
		m.Nanos += 5000 + int64(noise.IntN(9000))
		sink.Add(&m, header)
		if i%1024 == 0 {
			sink.Tick()
			if ctx.Err() != nil {
				return nil
			}
		}
	}
	sink.Tick()
	return nil
}

// BenchmarkJudgeFullWindow judges a full window of 256 MiB with 10,000 flows that
// were reset, and tells the most memory that the process ever had.
func BenchmarkJudgeFullWindow(b *testing.B) {
	r, err := recorder.New(recorder.Config{Memory: fullWindow})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if err := r.Run(b.Context(), &traffic{}); err != nil {
		b.Fatal(err)
	}
	frozen, err := r.Freeze(b.Context(), time.Unix(0, 0), time.Unix(2e9, 0))
	if err != nil {
		b.Fatal(err)
	}
	defer frozen.Release()
	for b.Loop() {
		inc := &evidence.Incident{Window: frozen.Window()}
		judge(inc, frozen.ReadNeeded, nil)
		b.ReportMetric(float64(inc.Window.PacketCount), "packets")
		b.ReportMetric(float64(inc.FlowsImplicated), "flows")
	}
	b.ReportMetric(peakMiB(b), "peak-MiB")
}

// peakMiB is VmHWM of proc(5).
func peakMiB(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}
