package main

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tcpcoroner/evidence"
	"tcpcoroner/internal/netlab"
)

// An incident accounts for its resets: those of an application are told by the
// kernel, a rule's and a forger's are residues with their cause.
func TestIncidentHasALedger(t *testing.T) {
	netlab.NeedRoot(t)
	ns := netlab.NewNS(t)
	p := startDaemon(t, ns, t.TempDir(), nil)
	ns.Run(t, func() {
		l := ns.Listen(t, "127.0.0.1:0")
		for range 3 {
			c := ns.Dial(t, l.Addr().String())
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := netlab.Reset(s); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		reject(t, ns)
		if _, err := ns.TryDial("127.0.0.1:" + rejected); err == nil {
			t.Error("the rule rejects nothing")
		}
		forgeReset(t)
	})
	f, err := p.client().Freeze(t.Context(), "ledger")
	if err != nil {
		t.Fatal(err)
	}
	inc := chainIncident(t, p, f.ID)
	causes := map[string]uint64{}
	var sent, rejects uint64
	for _, r := range inc.Ledger {
		if r.NetNS != inc.Host.NetNS {
			t.Errorf("a namespace that was not recorded: %+v", r)
		}
		for _, c := range r.Parts {
			causes[c.Cause] += c.Count
		}
		sent += r.Sent["TCP_STATE"] + r.Sent[""]
		rejects += r.Rejects
	}
	if sent < 3 || rejects+causes[evidence.LedgerFirewall] != 1 || causes[evidence.LedgerOtherSender] != 1 ||
		causes[evidence.LedgerUnrecorded]+causes[evidence.LedgerUntold] != 0 {
		t.Errorf("%d resets told, %d rejects, residues %v: %+v", sent, rejects, causes, inc.Ledger)
	}
	p.stop(t)
}

// rejected is a port that a rule of the test rejects.
const rejected = "9990"

func reject(t *testing.T, ns *netlab.NS) {
	t.Helper()
	cmd := ns.Command(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`table inet t { chain c { type filter hook input priority 0; tcp dport ` + rejected + ` reject with tcp reset; }; }`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("reject port %s: %v: %s", rejected, err, out)
	}
}

// forgeReset sends a reset that belongs to nothing from a raw socket.
func forgeReset(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 1)
	binary.BigEndian.PutUint16(b[2:], 2)
	binary.BigEndian.PutUint32(b[4:], 0xabcdef01)
	b[12], b[13] = 5<<4, byte(evidence.RST)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}
