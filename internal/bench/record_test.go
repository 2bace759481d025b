package main

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"

	"tcpcoroner/internal/bench/gen"
	"tcpcoroner/internal/netlab"
	"tcpcoroner/recorder"
	"tcpcoroner/recorder/afpacket"
)

// BenchmarkRecord is the whole packet path, from the kernel's ring to the sealed
// chunk, with the generator's packets. The profile that the product is built with
// is made with it:
//
//	go test -run '^$' -bench Record -benchtime 8000000x -cpuprofile cmd/tcpcoroner/default.pgo ./internal/bench
func BenchmarkRecord(b *testing.B) {
	netlab.NeedRoot(b)
	runtime.LockOSThread() // it stays in the namespace, and ends with the benchmark
	ns := netlab.NewNS(b)
	ns.IP(b, "link", "add", "bench0", "type", "veth", "peer", "name", "bench1")
	ns.IP(b, "link", "set", "bench0", "up")
	ns.IP(b, "link", "set", "bench1", "up")
	if err := ns.Do(func() error { return record(b) }); err != nil {
		b.Fatal(err)
	}
}

func record(b *testing.B) error {
	link, err := net.InterfaceByName("bench0")
	if err != nil {
		return err
	}
	g, err := gen.Open(gen.Config{Interface: link.Index, Flows: 1024})
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	source, err := afpacket.Open(afpacket.Config{RingBytes: 32 << 20})
	if err != nil {
		return err
	}
	r, err := recorder.New(recorder.Config{Memory: 128 << 20, Ring: 32 << 20})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, source) }()
	before := r.Stats()
	for sent := 0; sent < b.N; sent += 250_000 {
		if err := g.Burst(min(250_000, b.N-sent)); err != nil {
			return err
		}
	}
	for end := time.Now().Add(2 * time.Second); r.Stats().Seen < g.Sent().Packets && time.Now().Before(end); {
		runtime.Gosched()
	}
	after := r.Stats()
	b.ReportMetric(float64(after.CPU-before.CPU)/float64(after.Seen-before.Seen), "cpu-ns/packet")
	stop()
	return <-done
}
