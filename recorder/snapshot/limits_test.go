package snapshot

import (
	"net"
	"testing"
)

func TestParseMaxPages(t *testing.T) {
	for text, want := range map[string]uint64{"22206\t29609\t44412\n": 44412, "1 2 3": 3, "": 0, "1 2": 0, "a b c": 0} {
		if n, err := parseMaxPages(text); n != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

// The limits are there, and a connection's port is counted.
func TestLimitsOfThisHost(t *testing.T) {
	taker := New(Config{})
	if orphans, pages, err := taker.MemoryLimits(); err != nil || orphans == 0 || pages == 0 {
		t.Errorf("%d orphans, %d pages, %v", orphans, pages, err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ports, err := taker.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ports.Available() < 1 || len(ports.Uses) == 0 {
		t.Errorf("%+v", ports)
	}
}
