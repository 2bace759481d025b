package main

import (
	"flag"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReplayIsRead(t *testing.T) {
	const text = `1,243,271 packets in 2m30.1s: 9,113 connections ended; 2 firings
2026-11-23T21:43:55.010Z  12 harmful resets in 10s
   6,012  harmless: healthcheck
      18  harmless: stray
       7  harmful: data_lost
   1,001  harmful: unanswered
`
	var j judged
	if err := j.parse(text); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"healthcheck": 6012, "stray": 18, "data_lost": 7, "unanswered": 1001}
	if diff := cmp.Diff(want, j.kinds); diff != "" || j.firings != 2 || j.harmful != 1008 || j.sum() != 7038 {
		t.Errorf("%d firings, %d harmful, %d in all (-want +got):\n%s", j.firings, j.harmful, j.sum(), diff)
	}
	if err := j.parse("usage"); err == nil {
		t.Error("what is no replay is one")
	}
}

func TestFlagsAnywhere(t *testing.T) {
	flags := flag.NewFlagSet("x", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	minutes, quick := flags.Float64("minutes", 0, ""), flags.Bool("quick", false, "")
	names, err := parse(flags, []string{"benign", "-minutes", "2.5", "idle", "-quick"})
	if diff := cmp.Diff([]string{"benign", "idle"}, names); err != nil || diff != "" || *minutes != 2.5 || !*quick {
		t.Errorf("%v, %v minutes, quick %v (-want +got):\n%s", err, *minutes, *quick, diff)
	}
	if _, err := parse(flags, []string{"benign", "-speed"}); err == nil {
		t.Error("an unknown flag is taken")
	}
}

func TestConfigurationsAreFilled(t *testing.T) {
	for _, text := range []string{siteConfig, proxyConfig} {
		got := fill(text, "/d", "192.0.2.1", "192.0.2.2")
		if !strings.Contains(got, "192.0.2.1:80") || placeholders.MatchString(got) || strings.Contains(got, "$") {
			t.Errorf("configuration:\n%s", got)
		}
	}
}

// A visitor sees what has arrived and that the other end has closed.
func TestVisitor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v, err := visitAt("127.0.0.1", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if v.ended() {
		t.Error("a fresh connection has ended")
	}
	if _, err := s.Write(make([]byte, 30)); err != nil {
		t.Fatal(err)
	}
	if err := v.arrived(t.Context(), 20); err != nil {
		t.Error(err)
	}
	if n, err := v.waiting(); err != nil || n != 30 {
		t.Errorf("%d bytes wait, %v", n, err)
	}
	if _, err := io.ReadFull(v, make([]byte, 30)); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	_ = v.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := v.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if !v.ended() {
		t.Error("a closed connection has not ended")
	}
}
