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
	netlab.NewNS(t).Run(t, func() {
		tp, err := afpacket.NewTPacket(afpacket.OptSocketType(afpacket.SocketDgram),
			afpacket.OptBlockSize(blockBytes), afpacket.OptNumBlocks(minBlocks))
		if err != nil {
			t.Fatal(err)
		}
		defer tp.Close()
		s, err := adopt(tp, minBlocks)
		if err != nil || len(s.ring) != minBlocks*blockBytes || s.fd <= 0 {
			t.Fatalf("cannot adopt gopacket's socket: %v", err)
		}
		if _, err := adopt(tp, minBlocks+1); err == nil || !strings.Contains(err.Error(), "field ring") {
			t.Errorf("another ring size says %v", err)
		}
	})
}
