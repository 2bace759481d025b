package kernel

import (
	"time"

	"tcpcoroner/evidence"
)

// Stats tells what the programs did since Open and what they cost. Counts are of
// events unless said otherwise.
type Stats struct {
	// Events were described, Suppressed came too fast and were only counted.
	Events, Suppressed map[evidence.KernelEventKind]uint64
	// Lost had no room in the ring, Untabled are suppressed ones of which no more is
	// known than their number: there are too many ports and reasons at once.
	Lost, Untabled uint64
	// Phantoms are received resets that were none, Evicted were forgotten to make
	// room, Undecodable could not be read. Missed is how often a program was not run,
	// for it ran already on that CPU.
	Phantoms, Evicted, Undecodable, Missed uint64
	// Kept are in memory now.
	Kept int
	// Owners is the number of live sockets whose owner is known, OwnersFailed those
	// that found no room, Graves the sockets that were buried, the latest thousands
	// of which are known, and GravesFailed those that found the place busy.
	Owners, OwnersFailed, Graves, GravesFailed uint64
	// ClockSteps counts jumps of the wall clock, LargestStep is the largest.
	ClockSteps  uint64
	LargestStep time.Duration
	// MapBytes is the kernel memory of the maps.
	MapBytes uint64
	Programs []ProgramStats
}

// ProgramStats is the work of one program. Runs and Time stay 0 unless
// Config.ProgramStats or somebody else has them measured.
type ProgramStats struct {
	Hook string
	Runs uint64
	Time time.Duration
	// Missed counts events during which the program was running already.
	Missed uint64
}

// The buckets and counters of bpf/maps.h.
const (
	buckets     = 6
	countLost   = 2 * buckets
	ownerIn     = countLost + 1
	ownerOut    = countLost + 2
	ownerFailed = countLost + 3
	unburied    = countLost + 4
	untabled    = countLost + 5
)

// bucketKinds is the kind of event of each bucket.
var bucketKinds = [buckets]evidence.KernelEventKind{
	evidence.ResetSent, evidence.ResetSent, evidence.ResetReceived,
	evidence.SocketError, evidence.SegmentDropped, evidence.FirewallReject,
}

// Stats reads the counters. The numbers are of about the same moment.
func (k *Kernel) Stats() Stats {
	s := Stats{Events: map[evidence.KernelEventKind]uint64{}, Suppressed: map[evidence.KernelEventKind]uint64{}}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept.stats(&s)
	s.ClockSteps, s.LargestStep = k.clock.stats()
	if k.closed || k.maps == nil {
		return s
	}
	for i, kind := range bucketKinds {
		s.Events[kind] += k.count(i)
		s.Suppressed[kind] += k.count(buckets + i)
	}
	s.Lost, s.Untabled, s.OwnersFailed = k.count(countLost), k.count(untabled), k.count(ownerFailed)
	s.GravesFailed = k.count(unburied)
	var tickets uint64
	if k.maps[bpfMapBuried].Lookup(uint32(0), &tickets) == nil {
		s.Graves = tickets - min(tickets, s.GravesFailed)
	}
	if in, out := k.count(ownerIn), k.count(ownerOut); in > out {
		s.Owners = in - out
	}
	k.costs(&s)
	return s
}

// count sums one counter over the CPUs.
func (k *Kernel) count(i int) (sum uint64) {
	var each []uint64
	if k.maps[bpfMapCounts].Lookup(uint32(i), &each) != nil {
		return 0
	}
	for _, n := range each {
		sum += n
	}
	return sum
}

// costs asks the kernel what the maps and programs take.
func (k *Kernel) costs(s *Stats) {
	for _, m := range k.maps {
		if info, err := m.Info(); err == nil {
			bytes, _ := info.Memlock()
			s.MapBytes += bytes
		}
	}
	for _, p := range k.progs {
		if st, err := p.Stats(); err == nil {
			s.Missed += st.RecursionMisses
			s.Programs = append(s.Programs, ProgramStats{p.name, st.RunCount, st.Runtime, st.RecursionMisses})
		}
	}
}

func (k *keeper) stats(s *Stats) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.Kept, s.Phantoms, s.Evicted, s.Undecodable = len(k.list), k.phantoms, k.evicted, k.bad
}
