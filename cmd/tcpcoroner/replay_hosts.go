package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"tcpcoroner/evidence"
)

// hostName is what stands before "=" in an argument.
var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// ofHost splits "web1=FILE" or "web1=VALUE"; without a host's name it is the value.
func ofHost(text string) (host, value string) {
	before, after, found := strings.Cut(text, "=")
	if found && hostName.MatchString(before) {
		return before, after
	}
	return "", text
}

// capturing is one host's part of a replay: its files, and what is local to it.
type capturing struct {
	host  string
	files []string
	locality
}

// byHost sorts files by the host that they were captured on. The addresses of
// --local and --local-mac are a host's own if they say so, else everybody's.
func byHost(files []string, local, localMAC string) ([]*capturing, error) {
	var all []*capturing
	for _, text := range files {
		host, file := ofHost(text)
		if _, err := os.Stat(text); err == nil {
			host, file = "", text // its name has a "="
		}
		at := slices.IndexFunc(all, func(c *capturing) bool { return c.host == host })
		if at < 0 {
			at, all = len(all), append(all, &capturing{host: host})
		}
		all[at].files = append(all[at].files, file)
	}
	var errs []error
	for _, c := range all {
		var err error
		c.locality, err = parseLocality(of(c.host, local), of(c.host, localMAC))
		errs = append(errs, err)
	}
	for _, text := range append(listOf(local), listOf(localMAC)...) {
		if host, _ := ofHost(text); host != "" && !slices.ContainsFunc(all, func(c *capturing) bool { return c.host == host }) {
			errs = append(errs, fmt.Errorf("%q is of host %s, of which there is no file: give one as %s=FILE", text, host, host))
		}
	}
	if len(all) > 1 && slices.ContainsFunc(all, func(c *capturing) bool { return c.host == "" }) {
		errs = append(errs, errors.New("some files name their host and some do not: give each as HOST=FILE"))
	}
	return all, errors.Join(errs...)
}

// of are the items of a list that are a host's, or everybody's.
func of(host, list string) string {
	var own []string
	for _, text := range listOf(list) {
		if h, value := ofHost(text); h == "" || h == host {
			own = append(own, value)
		}
	}
	return strings.Join(own, ",")
}

// readHosts reads the files of several hosts as one window, in which each host is a
// network namespace of its own. What could be read of damaged ones is in it.
func readHosts(hosts []*capturing) (w evidence.Window, known int, err error) {
	var m merger
	var damage []error
	total := 0
	for _, h := range hosts {
		total += len(h.files)
	}
	for i, h := range hosts {
		for _, name := range h.files {
			win, err := readCapture(name)
			if err != nil {
				damage = append(damage, fmt.Errorf("%s: %w", name, err))
			}
			known += h.orient(win.Packets)
			if len(hosts) > 1 {
				h.name(&win, uint16(i+1))
			}
			m.add(&win, name, total > 1)
		}
	}
	return m.window(), known, errors.Join(damage...)
}

// readCaptures reads files of one host as one window.
func readCaptures(files []string) (evidence.Window, error) {
	w, _, err := readHosts([]*capturing{{files: files}})
	return w, err
}

// name makes the packets those of the namespace that stands for the host.
func (c *capturing) name(w *evidence.Window, index uint16) {
	w.Namespaces = []evidence.Namespace{{Index: index, Path: c.host}}
	for i := range w.Interfaces {
		w.Interfaces[i].Namespace = index
	}
	for i := range w.Packets {
		w.Packets[i].Namespace = index
	}
}
