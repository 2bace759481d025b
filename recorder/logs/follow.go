package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// maxFollowed bounds a line of Follow, in bytes; the rest of it is not read.
const maxFollowed = 4 << 10

// Follow calls visit with each message that is new in the journal, cut to 4 KiB and
// valid during the call only, until ctx ends. It costs nothing while nobody writes.
func (r *Reader) Follow(ctx context.Context, visit func(line string)) error {
	args := []string{"--follow", "--lines=0", "--output=cat", "--no-pager", "--quiet"}
	if r.cfg.JournalDir != "" {
		args = append(args, "--directory="+r.cfg.JournalDir)
	}
	cmd := exec.CommandContext(ctx, r.cfg.Journalctl, args...)
	var said strings.Builder
	cmd.Stderr = &limited{to: &said, left: 512}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("follow the journal: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("follow the journal: %w", err)
	}
	readErr := eachMessage(out, visit)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("follow the journal: %w: %s", errors.Join(readErr, err, errEnded), strings.TrimSpace(said.String()))
}

var errEnded = errors.New("journalctl ended by itself")

// eachMessage reads lines of any length.
func eachMessage(from io.Reader, visit func(string)) error {
	in := bufio.NewReaderSize(from, maxFollowed)
	for {
		line, more, err := in.ReadLine()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		visit(string(line))
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
	}
}

// limited keeps the first bytes that are written.
type limited struct {
	to   io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	_, err := l.to.Write(b[:n])
	return len(b), err
}
