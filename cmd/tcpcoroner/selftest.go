package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tcpcoroner/evidence"
	"tcpcoroner/exporter/pcapng"
)

// selftestResets is how many harmless resets the self-test makes: too few for
// any trigger, enough to see one missing.
const selftestResets = 3

func selftestCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "selftest", Short: "make harmless resets on loopback and follow them through the whole chain", Args: usageArgs(cobra.NoArgs),
		Long: "selftest makes three connections to itself on 127.0.0.1 and resets them. The daemon must see them, know who owned\n" +
			"them, freeze and store the moment, and give the capture back. It must run in the daemon's network and PID namespaces.",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
			defer cancel()
			return (&selftest{env: e}).run(ctx)
		},
	}
}

// selftest follows a few resets through the chain. Each step needs the one before.
type selftest struct {
	env    *env
	server netip.AddrPort
	inc    *evidence.Incident
	steps  []selftestStep
}

type selftestStep struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

func (s *selftest) run(ctx context.Context) error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("open a listener on loopback: %w", err)
	}
	defer l.Close()
	s.server = l.Addr().(*net.TCPAddr).AddrPort()
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"daemon", s.daemon},
		{"reset", func(context.Context) (string, error) { return s.reset(l) }},
		{"freeze", s.freeze},
		{"seen", s.seen},
		{"owned", s.owned},
		{"pulled", s.pulled},
	} {
		text, err := step.do(ctx)
		if err != nil {
			s.report(step.name, false, err.Error())
			return errors.Join(s.flush(), fmt.Errorf("selftest stopped at step %q: %w", step.name, err))
		}
		s.report(step.name, true, text)
	}
	return s.flush()
}

func (s *selftest) report(name string, ok bool, text string) {
	s.steps = append(s.steps, selftestStep{name, ok, text})
	if s.env.json {
		return
	}
	word := "ok  "
	if !ok {
		word = "FAIL"
	}
	fmt.Fprintf(s.env.stdout, "%s  %-7s %s\n", word, name, text)
}

func (s *selftest) flush() error {
	if s.env.json {
		return s.env.print(s.steps)
	}
	return nil
}

func (s *selftest) daemon(ctx context.Context) (string, error) {
	st, err := s.env.client().Status(ctx)
	if err != nil {
		return "", err
	}
	if !st.Healthy {
		return "", fmt.Errorf("the daemon is not healthy: %v", st.Problems)
	}
	return fmt.Sprintf("version %s, %d interfaces, %d packets seen", st.Version, len(st.Recorder.Interfaces), st.Recorder.Seen), nil
}

// reset makes connections that the accepting side closes with SO_LINGER 0.
func (s *selftest) reset(l net.Listener) (string, error) {
	for range selftestResets {
		if err := resetOnce(l); err != nil {
			return "", fmt.Errorf("reset a connection on loopback: %w", err)
		}
	}
	return fmt.Sprintf("%d connections to %v reset on purpose", selftestResets, s.server), nil
}

func resetOnce(l net.Listener) error {
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	a, err := l.Accept()
	if err != nil {
		return err
	}
	if err := errors.Join(a.(*net.TCPConn).SetLinger(0), a.Close()); err != nil {
		return err
	}
	// The RST has crossed loopback when the read fails.
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		return errors.New("the connection did not end with a reset")
	}
	return nil
}

func (s *selftest) freeze(ctx context.Context) (string, error) {
	f, err := s.env.client().Freeze(ctx, "selftest")
	if err != nil {
		return "", err
	}
	if s.inc, err = s.env.client().Incident(ctx, f.ID); err != nil {
		return "", err
	}
	return fmt.Sprintf("incident %s is stored: %d packets", f.ID, s.inc.Window.PacketCount), nil
}

// mine are the incident's flows that this self-test made.
func (s *selftest) mine() (flows []*evidence.Flow) {
	for i := range s.inc.Flows {
		if s.inc.Flows[i].Server == s.server {
			flows = append(flows, &s.inc.Flows[i])
		}
	}
	return flows
}

func (s *selftest) seen(context.Context) (string, error) {
	flows := s.mine()
	if len(flows) != selftestResets {
		return "", fmt.Errorf("%d of %d resets on %v are in the incident: does the daemon record this network namespace?",
			len(flows), selftestResets, s.server)
	}
	c := flows[0].Verdict.Claim()
	if c.Mechanism != evidence.MechanismLinger && c.Mechanism != evidence.MechanismActiveAbort {
		return "", fmt.Errorf("the verdict is %s/%s, not an abort by SO_LINGER 0: %s", c.Origin, c.Mechanism, c.Sentence)
	}
	return fmt.Sprintf("%d of %d: %s (%s)", len(flows), selftestResets, c.Sentence, c.Confidence), nil
}

func (s *selftest) owned(context.Context) (string, error) {
	for _, f := range s.mine() {
		if f.Owner == nil || f.Owner.PID != os.Getpid() {
			return "", fmt.Errorf("flow %s: the owner is %v, not this process (%d); %v", f.ID, f.Owner, os.Getpid(), s.inc.Missing())
		}
	}
	return fmt.Sprintf("by %s[%d]", s.mine()[0].Owner.Comm, os.Getpid()), nil
}

func (s *selftest) pulled(ctx context.Context) (string, error) {
	var b bytes.Buffer
	if err := s.env.client().Capture(ctx, s.inc.ID, &b); err != nil {
		return "", err
	}
	size := b.Len()
	w, err := pcapng.Read(&b)
	if err != nil {
		return "", fmt.Errorf("read the capture back: %w", err)
	}
	resets := 0
	var seg evidence.Segment
	for i := range w.Packets {
		if evidence.ParseSegment(&w.Packets[i], &seg) == nil && seg.Flags.Has(evidence.RST) && seg.Src == s.server {
			resets++
		}
	}
	if resets != selftestResets {
		return "", fmt.Errorf("the capture holds %d resets of %v, not %d", resets, s.server, selftestResets)
	}
	return fmt.Sprintf("capture of %d bytes, %d packets, all %d resets in it", size, len(w.Packets), resets), nil
}
