package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"tcpcoroner/evidence"
)

// Sockets are counted while there are enough of them for the range, however small it
// is, once more when there are not, and now and then.
func TestPortCount(t *testing.T) {
	now, counts := time.Unix(1790000000, 0), 0
	values := map[string]uint64{}
	var failed error
	p := &portCount{part: 0.8, now: func() time.Time { return now },
		latest: func() (evidence.Counters, error) { return evidence.Counters{Values: values}, failed },
		count: func(context.Context) (*evidence.PortRange, error) {
			counts++
			return &evidence.PortRange{First: 40000, Last: 40099, Uses: []evidence.PortUse{{Used: int(values["Sockstat.TCP.inuse"])}}}, nil
		}}
	for _, tt := range []struct {
		name         string
		after        time.Duration
		v4, v6, wait uint64
		failed       error
		want         int
	}{
		{"the range is not known", 0, 5, 0, 0, nil, 1},
		{"few", portsEvery, 79, 0, 0, nil, 1},
		{"as many as interest", portsEvery, 80, 0, 0, nil, 2},
		{"and again", portsEvery, 80, 0, 0, nil, 3},
		{"few again", portsEvery, 10, 0, 0, nil, 4},
		{"still few", portsEvery, 10, 0, 0, nil, 4},
		{"IPv6 and TIME-WAIT, too", portsEvery, 10, 30, 40, nil, 5},
		{"none", portsEvery, 0, 0, 0, nil, 6},
		{"a minute later", portsAgain, 0, 0, 0, nil, 7},
		{"how many is not known", portsEvery, 0, 0, 0, errors.New("no counters"), 8},
	} {
		now = now.Add(tt.after)
		values["Sockstat.TCP.inuse"], values["Sockstat.TCP6.inuse"], values["Sockstat.TCP.tw"] = tt.v4, tt.v6, tt.wait
		failed = tt.failed
		got, err := p.get()
		if err != nil || counts != tt.want {
			t.Errorf("%s: counted %d times, want %d, %v", tt.name, counts, tt.want, err)
		}
		if tt.v4 >= 80 && got.Uses[0].Used != int(tt.v4) {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
