//go:build cgo

package afpacket

import (
	"strings"
	"testing"

	"github.com/google/gopacket/afpacket"

	"tcpcoroner/internal/netlab"
)

// The walker stands on two private fields of gopacket.
func TestGopacketPrivateFields(t *testing.T) {
	g := newGeometry(2 << 20)
	netlab.NewNS(t).Run(t, func() {
		tp, err := afpacket.NewTPacket(afpacket.OptSocketType(afpacket.SocketDgram),
			afpacket.OptBlockSize(g.blockBytes), afpacket.OptNumBlocks(g.blocks))
		if err != nil {
			t.Fatal(err)
		}
		defer tp.Close()
		s, err := adopt(tp, g)
		if err != nil || len(s.ring) != g.bytes() || s.fd <= 0 {
			t.Fatalf("cannot adopt gopacket's socket: %v", err)
		}
		if _, err := adopt(tp, newGeometry(4<<20)); err == nil || !strings.Contains(err.Error(), "field ring") {
			t.Errorf("another ring size says %v", err)
		}
	})
}
