//go:build !race

// The race detector's own memory would be in the numbers.

package store

import (
	"fmt"
	"strings"
	"testing"
)

// TestMemory bounds what the store needs beside the chunks that are its input.
func TestMemory(t *testing.T) {
	out, err := child(t, "memory", t.TempDir()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var anon int
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmHWM") {
			t.Log(strings.TrimSpace(line))
		}
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &anon)
	}
	if over := anon>>10 - 64; anon == 0 || over > 48 {
		t.Errorf("%d MiB of anonymous memory beside the 64 MiB of chunks", over)
	}
}
