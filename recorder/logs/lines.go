package logs

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"tcpcoroner/evidence"
)

// maxRaw is how many bytes of a line are looked at. What is behind is skipped, so
// that a line of any length costs one entry.
const maxRaw = 8 << 10

// eachLine calls f for every line, without its end and cut to max bytes, until f
// returns false. The slice is only good during the call. A last line without a
// newline counts.
func eachLine(r io.Reader, max int, f func(line []byte) bool) error {
	in := bufio.NewReaderSize(r, max)
	for {
		line, err := in.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		if len(line) > 0 && !f(bytes.TrimRight(line, "\r\n")) {
			return nil
		}
		for cut {
			_, err = in.ReadSlice('\n')
			cut = errors.Is(err, bufio.ErrBufferFull)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// tidy makes a raw line fit to keep: no secrets, no control characters that could
// drive a terminal, at most evidence.MaxLogText bytes of UTF-8.
func tidy(raw string) string {
	if len(raw) > maxRaw {
		raw = raw[:maxRaw]
	}
	return shorten(Redact(printable(withoutBinary(raw))), evidence.MaxLogText)
}

// binary is what a program quotes of bytes that are no text, as nginx does with a TLS
// hello on a plain port: the client's payload, which is not ours to keep. Raw or escaped
// control characters tell, but for tabs and the colours of terminals.
var binary = regexp.MustCompile(`(?s)"[^"]*?(?:[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\\x[01][0-9A-Fa-f]).*(?:"|$)`)

// withoutBinary takes what is no text out of a line.
func withoutBinary(raw string) string {
	if !strings.Contains(raw, `\x`) && !strings.ContainsFunc(raw, unicode.IsControl) {
		return raw
	}
	return binary.ReplaceAllLiteralString(raw, `"[binary]"`)
}

// printable puts spaces in the place of control characters and of what is not UTF-8.
func printable(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text))
}

// shorten cuts text at a character's border and marks the cut.
func shorten(text string, max int) string {
	if len(text) <= max {
		return text
	}
	const mark = "…"
	end := max - len(mark)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + mark
}
