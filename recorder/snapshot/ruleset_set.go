package snapshot

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxElements bounds what is written of one set.
const maxElements = 24

// setUse is a rule's look-up in a set or a map of verdicts.
type setUse struct {
	name     string
	fields   []operand
	verdicts bool
}

// element is one key of a set. Sets of intervals have an element for each
// beginning and each end; others that know ranges say the last key.
type element struct {
	key, last []byte
	end       bool
	verdict   string
}

// fillSets writes the elements of anonymous sets into a rule's text: without
// them the rule does not say what it matches. Named sets stay names, unless
// they hold verdicts.
func (t *Taker) fillSets(ctx context.Context, d *decoder) {
	for _, use := range d.sets {
		if !use.verdicts && !strings.HasPrefix(use.name, "__set") {
			continue
		}
		text, drops := setText(use, t.elements(ctx, d, use))
		if drops && d.rule.Action == "" {
			d.rule.Action = "drop"
		}
		for i, w := range d.words {
			if lead, ok := strings.CutSuffix(w, "@"+use.name); ok && text != "" {
				d.words[i] = lead + text
			}
		}
	}
}

// elements asks for a set. What cannot be read leaves the set a name.
func (t *Taker) elements(ctx context.Context, d *decoder, use setUse) (all []element) {
	r := nftRequest(unix.NFT_MSG_GETSETELEM)
	r.body[0] = d.family
	r.body = appendAttr(r.body, unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(d.rule.Table), 0)...)
	r.body = appendAttr(r.body, unix.NFTA_SET_ELEM_LIST_SET, append([]byte(use.name), 0)...)
	err := t.dump(ctx, r, func(b []byte) bool {
		all = append(all, parseElements(b)...)
		return len(all) <= 4*maxElements
	})
	if err != nil {
		return nil
	}
	return all
}

// parseElements reads NFTA_SET_ELEM_LIST_ELEMENTS of one message.
func parseElements(b []byte) (all []element) {
	if len(b) < nfgenLen {
		return nil
	}
	for typ, list := range attributes(b[nfgenLen:]) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, elem := range attributes(list) {
			a := exprAttrs(elem)
			e := element{
				key:  bytes.Clone(dataValue(a[unix.NFTA_SET_ELEM_KEY])),
				last: bytes.Clone(dataValue(a[10])), // NFTA_SET_ELEM_KEY_END, of Linux 5.6
				end:  big32(a[unix.NFTA_SET_ELEM_FLAGS])&unix.NFT_SET_ELEM_INTERVAL_END != 0,
			}
			if code, chain, ok := parseVerdict(a[unix.NFTA_SET_ELEM_DATA]); ok {
				e.verdict = strings.TrimSpace(verdictName(code) + " " + clean(chain))
			}
			if e.key != nil {
				all = append(all, e)
			}
		}
	}
	return all
}

// setText writes elements as nft(8) does, in the order of their keys, and tells
// whether one of them drops.
func setText(use setUse, all []element) (text string, drops bool) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b element) int {
		if c := bytes.Compare(a.key, b.key); c != 0 || a.end == b.end {
			return c
		}
		if a.end { // an interval ends before the next begins
			return -1
		}
		return 1
	})
	var parts []string
	for i, e := range all {
		if e.end {
			continue
		}
		part := keyText(use.fields, e.key)
		last := e.last
		if i+1 < len(all) && all[i+1].end {
			last = before(all[i+1].key)
		}
		if last != nil && !bytes.Equal(last, e.key) {
			part += "-" + keyText(use.fields, last)
		}
		if e.verdict != "" {
			part += " : " + e.verdict
			drops = drops || e.verdict == "drop"
		}
		parts = append(parts, part)
	}
	if len(parts) > maxElements {
		parts = append(parts[:maxElements], "...")
	}
	if len(parts) == 0 {
		return "", drops
	}
	return "{ " + strings.Join(parts, ", ") + " }", drops
}

// before is the key that precedes the end of an interval, which does not belong
// to it.
func before(end []byte) []byte {
	b := bytes.Clone(end)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}

// keyText writes a key. In a concatenation each field fills whole 32-bit
// registers.
func keyText(fields []operand, key []byte) string {
	if len(fields) == 1 {
		return fields[0].format(key)
	}
	var parts []string
	for _, f := range fields {
		n := min(f.size, len(key))
		parts = append(parts, f.format(key[:n]))
		key = key[min((f.size+3)&^3, len(key)):]
	}
	return strings.Join(parts, " . ")
}
