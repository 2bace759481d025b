package netlab

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestReset(t *testing.T) {
	lab := New(t)
	for _, ip := range []string{ServerIP4, ServerIP6} {
		t.Run(ip, func(t *testing.T) {
			l := lab.Server.Listen(t, net.JoinHostPort(ip, "0"))
			c := lab.Client.Dial(t, l.Addr().String())
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := Reset(s); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read says %v, want connection reset", err)
			}
		})
	}
}

func TestDoComesBack(t *testing.T) {
	ns := NewNS(t)
	here := func() string {
		s, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	home, inside := here(), ""
	ns.Run(t, func() { inside = here() })
	if inside == home || here() != home {
		t.Errorf("home %s, inside %s, after %s", home, inside, here())
	}
}

func TestCommand(t *testing.T) {
	ns := NewNS(t)
	out, err := ns.Command(t.Context(), "ip", "-o", "link").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "lo:") {
		t.Errorf("a new namespace has only lo, got:\n%s", out)
	}
}

func TestNewNSLeavesNothing(t *testing.T) {
	var name string
	t.Run("lab", func(t *testing.T) { name = NewNS(t).Name })
	if _, err := os.Stat("/run/netns/" + name); !os.IsNotExist(err) {
		t.Errorf("namespace %s is still there (%v)", name, err)
	}
}
