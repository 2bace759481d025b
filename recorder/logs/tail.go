package logs

import (
	"bytes"
	"context"
	"io"
	"time"
)

const (
	// block is how far the search for the window's start steps back at a time.
	block = 256 << 10
	// probe is how much of a block is read to find a dated line.
	probe = 2 * maxRaw
	// slack is how much older than the window a line must be for all lines before
	// it to be outside: writers buffer, and their workers overtake one another.
	slack = 5 * time.Second
)

// tail looks for a time in a file that grows at its end.
type tail struct {
	file  io.ReaderAt
	size  int64
	max   int64
	place place
}

// start returns an offset at or before the first line of from. It steps back from
// the end and looks at the beginning of each block; a block without a dated line
// is passed over. Short tells that max was hit first.
func (t *tail) start(ctx context.Context, from time.Time) (offset int64, short bool) {
	buf := make([]byte, probe)
	lowest := max(t.size-t.max, 0)
	for offset = t.size; offset > lowest; {
		offset = max(offset-block, lowest)
		if ctx.Err() != nil {
			return offset, true
		}
		n, err := t.file.ReadAt(buf, offset)
		if n == 0 && err != nil { // the file was cut short meanwhile
			continue
		}
		if at := t.firstTime(buf[:n], offset > 0); !at.IsZero() && at.Before(from.Add(-slack)) {
			return offset, false
		}
	}
	return offset, offset > 0
}

// firstTime is the time of the first whole line that has one.
func (t *tail) firstTime(b []byte, cut bool) time.Time {
	if cut {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	for range 8 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		if len(line) == 0 && len(rest) == 0 {
			break
		}
		if at := t.place.read(string(line)).Time; !at.IsZero() {
			return at
		}
		b = rest
	}
	return time.Time{}
}
