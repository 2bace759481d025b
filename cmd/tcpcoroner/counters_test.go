package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

// stages are samples a second apart.
func stages(all ...map[string]uint64) (list []evidence.Counters) {
	for i, values := range all {
		list = append(list, evidence.Counters{Time: time.Unix(1000+int64(i), 0), Values: values})
	}
	return list
}

// Each sample comes back as it was, whichever is the oldest that is left.
func checkHistory(t *testing.T, span time.Duration, list []evidence.Counters) {
	t.Helper()
	h := counterHistory{span: span}
	for i, c := range list {
		h.add(evidence.Counters{Time: c.Time, Values: maps.Clone(c.Values)}, nil)
		oldest := max(0, i-int(span/time.Second))
		for j := range i + 1 {
			at := list[j].Time.Add(time.Second / 2)
			if diff := cmp.Diff(list[max(j, oldest)], h.before(at)); diff != "" {
				t.Fatalf("sample %d of %d (-want +got):\n%s", j, i+1, diff)
			}
		}
		if got, err := h.latest(); err != nil || !cmp.Equal(c, got) {
			t.Fatalf("latest of %d: %v, %v", i+1, got, err)
		}
	}
}

func TestCounterHistory(t *testing.T) {
	v := func(pairs ...any) map[string]uint64 {
		values := map[string]uint64{}
		for ; len(pairs) > 0; pairs = pairs[2:] {
			values[pairs[0].(string)] = uint64(pairs[1].(int))
		}
		return values
	}
	for name, list := range map[string][]evidence.Counters{
		"nothing moves":        stages(v("a", 1, "b", 0), v("a", 1, "b", 0), v("a", 1, "b", 0)),
		"up and down":          stages(v("a", 1), v("a", 1<<40), v("a", 7), v("a", 0), v("a", 9)),
		"one is new":           stages(v("a", 1), v("a", 1, "b", 0), v("a", 2, "b", 5), v("a", 2, "b", 6)),
		"one goes and is back": stages(v("a", 1, "b", 2), v("a", 2), v("a", 3), v("a", 4, "b", 0), v("a", 4, "b", 1)),
		"one for another":      stages(v("a", 1), v("b", 1), v("a", 2), v("c", 3)),
		"none":                 stages(v(), v(), v("a", 1), v()),
		"the largest": stages(map[string]uint64{"a": 0}, map[string]uint64{"a": math.MaxUint64}, map[string]uint64{"a": 1},
			map[string]uint64{"a": 1 << 63}, map[string]uint64{"a": 0}),
	} {
		t.Run(name, func(t *testing.T) {
			for _, span := range []time.Duration{0, time.Second, 2 * time.Second, time.Hour} {
				checkHistory(t, span, list)
			}
		})
	}
}

// A second without a sample says so and loses nothing.
func TestCounterHistoryWithoutSample(t *testing.T) {
	h := counterHistory{span: time.Minute}
	c := stages(map[string]uint64{"a": 1})[0]
	h.add(c, nil)
	failed := errors.New("no /proc")
	h.add(evidence.Counters{}, failed)
	if _, err := h.latest(); !errors.Is(err, failed) {
		t.Errorf("latest: %v", err)
	}
	if diff := cmp.Diff(c, h.before(c.Time)); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
}

// An hour of a busy host's counters takes little.
func TestCounterHistoryIsSmall(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	values := map[string]uint64{}
	for i := range 400 {
		values[fmt.Sprintf("TcpExt.Counter%d", i)] = random.Uint64N(1 << 32)
	}
	h := counterHistory{span: time.Hour}
	for i := range 3600 {
		for n := range 60 {
			values[fmt.Sprintf("TcpExt.Counter%d", n*3)] += random.Uint64N(100_000)
		}
		h.add(evidence.Counters{Time: time.Unix(int64(i), 0), Values: values}, nil)
	}
	size := 0
	for _, s := range h.samples {
		size += cap(s.moved) + 48
	}
	if len(h.samples) != 3600 || size > 2<<20 {
		t.Errorf("%d samples take %d bytes", len(h.samples), size)
	}
}

func FuzzCounterHistory(f *testing.F) {
	f.Add([]byte{0, 1, 1, 5, 255, 0, 2, 9, 255, 129, 0, 255, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		values, list := map[string]uint64{}, []evidence.Counters(nil)
		for ; len(b) > 1 && len(list) < 16; b = b[2:] {
			name := string(rune('a' + b[0]%8))
			switch {
			case b[0] == 255:
				list = append(list, evidence.Counters{Time: time.Unix(1000+int64(len(list)), 0), Values: maps.Clone(values)})
			case b[0] >= 128:
				delete(values, name)
			default:
				values[name] = uint64(b[1]) << (b[0] / 2)
			}
		}
		checkHistory(t, 3*time.Second, list)
	})
}
