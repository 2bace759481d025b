package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/internal/netlab"
)

func TestStatistics(t *testing.T) {
	for _, tt := range []struct {
		list                  []float64
		median, least, spread float64
	}{
		{[]float64{3}, 3, 3, 0},
		{[]float64{4, 2}, 3, 2, 1.0 / 3},
		{[]float64{10, 1, 4}, 4, 1, 1.5},
	} {
		if m, l, s := median(tt.list), least(tt.list), spread(tt.list); m != tt.median || l != tt.least || s != tt.spread {
			t.Errorf("%v: median %v, least %v, spread %v; want %v, %v, %v", tt.list, m, l, s, tt.median, tt.least, tt.spread)
		}
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(least(nil)) {
		t.Error("nothing has no median and no minimum")
	}
}

func TestHighest(t *testing.T) {
	rates := ladder(100, 600, 1.5)
	if diff := cmp.Diff([]float64{100, 150, 225, 337.5, 506.25}, rates); diff != "" {
		t.Error(diff)
	}
	for want := -1; want < len(rates); want++ {
		tries := 0
		got, err := highest(len(rates), func(i int) (bool, error) { tries++; return i <= want, nil })
		if got != want || err != nil || tries > 3 {
			t.Errorf("highest = %d, %v after %d tries, want %d", got, err, tries, want)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, tt := range []struct{ most, want float64 }{{99, 0}, {100, 100}, {130, 115}, {140, 132.25}, {149, 132.25}, {151, 150}, {1e6, 669.4}} {
		got, err := limit(100, 600, func(rate float64) (bool, error) { return rate <= tt.most, nil })
		if math.Abs(got-tt.want) > 0.2 || err != nil {
			t.Errorf("limit of %v = %v, %v, want %v", tt.most, got, err, tt.want)
		}
	}
}

func TestAtMost(t *testing.T) {
	steady, wild := []float64{9, 10, 11}, []float64{5, 10, 11}
	for _, tt := range []struct {
		ours, rival []float64
		force       bool
		want        string
	}{
		{[]float64{3}, steady, false, "met        x: 0.300"},
		{[]float64{4}, steady, false, "MISSED     x: 0.400"},
		{[]float64{3}, wild, false, "no answer  x: the rival's own runs are up to 50 %"},
		{[]float64{3}, wild, true, "met        x: 0.300"},
	} {
		var out strings.Builder
		b := &bench{out: &out, force: tt.force}
		b.report.begin(part{name: "p"})
		b.atMost(1.0/3, "x", tt.ours, tt.rival)
		if !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v against %v: %q, want %q", tt.ours, tt.rival, out.String(), tt.want)
		}
	}
}

func TestSample(t *testing.T) {
	s := sample{Engine: 900, Sender: 3000, Got: counts{Packets: 3}}
	s.Sent.Packets = 4
	if e, g := engineNanos(s), senderNanos(s); e != 300 || g != 750 || s.lossless() || s.losses() != 0.25 {
		t.Errorf("%v, %v, %v, %v", e, g, s.lossless(), s.losses())
	}
	s.Got.Packets = 4
	if !s.lossless() {
		t.Error("all were seen")
	}
	s.Got.Dropped = 1
	if s.lossless() {
		t.Error("one was dropped")
	}
}

func TestTableAndReport(t *testing.T) {
	var out strings.Builder
	b := &bench{out: &out}
	b.report.begin(part{name: "p"})
	b.table(table{Title: "t", Columns: []string{"a", "bbb"}, Rows: [][]string{{"1111", "2"}}})
	if want := "\n  t\n  a     bbb\n  1111  2\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := b.report.write(path); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), `"columns"`) {
		t.Errorf("report is %q, %v", text, err)
	}
}

func TestRivalCounters(t *testing.T) {
	got, err := parseTcpdump("listening on\n1 packet captured\n3 packets received by filter\n2 packets dropped by kernel\n")
	if want := (counts{Packets: 1, Dropped: 2}); err != nil || got != want {
		t.Errorf("tcpdump: %+v, %v", got, err)
	}
	got, err = parseDumpcap("File: x\nPackets captured: 20\nPackets received/dropped on interface 'bench0': 20/5 (pcap:5/dumpcap:0/flushed:0/ps_ifdrop:0) (80.0%)\n")
	if want := (counts{Packets: 20, Dropped: 5}); err != nil || got != want {
		t.Errorf("dumpcap: %+v, %v", got, err)
	}
	if _, err := parseTcpdump("tcpdump: no such device"); err == nil {
		t.Error("no counters are no error")
	}
}

func TestProc(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"7/task/7/schedstat": "1500000000 12 3\n",
		"7/task/8/schedstat": "500000000 0 1\n",
		"7/task/7/status":    "Name:\tx\nvoluntary_ctxt_switches:\t4\nnonvoluntary_ctxt_switches:\t1\n",
		"7/task/8/status":    "voluntary_ctxt_switches:\t10\n",
		"7/task/7/children":  "8 9 ",
		"7/status":           "Name:\tx\nVmRSS:\t  2048 kB\nRssAnon:\t1024 kB\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := processorTime(root, 7); err != nil || d != 2*time.Second {
		t.Errorf("processor time %v, %v, want 2s", d, err)
	}
	if n, err := switches(root, 7); err != nil || n != 15 {
		t.Errorf("%d switches, %v, want 15", n, err)
	}
	if m, err := memoryOf(root, 7); err != nil || m["VmRSS"] != 2<<20 || m["RssAnon"] != 1<<20 {
		t.Errorf("memory %v, %v", m, err)
	}
	if c, err := children(root, 7); err != nil || !cmp.Equal(c, []int{8, 9}) {
		t.Errorf("children %v, %v", c, err)
	}
	if _, err := processorTime(root, 8); err == nil {
		t.Error("a process that is gone has a processor time")
	}
}

func TestSmallParsers(t *testing.T) {
	if _, err := parseSchedstat("1 2"); err == nil {
		t.Error("two numbers are a schedstat")
	}
	if n, err := parseWrk("  93018 requests in 3.00s, 12.3MB read\n"); err != nil || n != 93018 {
		t.Errorf("wrk: %v, %v", n, err)
	}
	if got := cpuModel("processor: 0\nmodel name\t: Fast One\n"); got != "Fast One" {
		t.Errorf("cpu model %q", got)
	}
	text := expand(nginxConfig, "/d")
	if !strings.Contains(text, "pid /d/nginx.pid;") || !strings.Contains(text, "listen "+serverIP+":80 ") || strings.Contains(text, "$") {
		t.Errorf("configuration of nginx:\n%s", text)
	}
}

func TestChoose(t *testing.T) {
	if all, err := choose(nil); err != nil || len(all) != len(parts()) {
		t.Errorf("no names choose %d parts, %v", len(all), err)
	}
	if two, err := choose([]string{"idle", "cpu"}); err != nil || len(two) != 2 || two[0].name != "idle" {
		t.Errorf("chose %v, %v", two, err)
	}
	if _, err := choose([]string{"speed"}); err == nil {
		t.Error("an unknown part is chosen")
	}
}

func TestUnwindInReverse(t *testing.T) {
	b, got := &bench{}, ""
	for _, s := range []string{"a", "b", "c"} {
		b.defers(func() error { got += s; return nil })
	}
	if err := b.unwind(1); err != nil || got != "cb" {
		t.Errorf("undid %q, %v, want cb", got, err)
	}
	if err := b.close(); err != nil || got != "cba" {
		t.Errorf("undid %q, %v, want cba", got, err)
	}
}

func needTcpdump(t *testing.T) {
	t.Helper()
	netlab.NeedRoot(t)
	if _, err := exec.LookPath("tcpdump"); err != nil && os.Getenv("CI") != "true" {
		t.Skip("needs tcpdump")
	}
}

// A rival and the generator must agree, or nothing else here means anything.
func TestTcpdumpCountsWhatIsSent(t *testing.T) {
	needTcpdump(t)
	b := &bench{dir: t.TempDir(), out: t.Output()}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	n, err := b.loop()
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.measure(t.Context(), n, tcpdump, flow{total: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	if !s.lossless() || s.Got.Packets != 20_000 || s.Got.Resets != int64(s.Sent.Resets) || s.Engine <= 0 || s.Sender <= 0 {
		t.Errorf("%+v", s)
	}
}

// Whatever happens, no process, namespace or file stays.
func TestInterruptedRunLeavesNothing(t *testing.T) {
	needTcpdump(t)
	ctx, cancel := context.WithCancel(t.Context())
	b := &bench{out: t.Output(), quick: true}
	var started *session
	err := b.run(ctx, []part{{name: "x", run: func(ctx context.Context, b *bench) error {
		n, err := b.loop()
		if err != nil {
			return err
		}
		started, err = tcpdump.start(ctx, b, n)
		cancel()
		return err
	}}})
	if err == nil || started == nil {
		t.Fatalf("run says %v", err)
	}
	select {
	case <-started.done:
	default:
		t.Error("the recorder still runs")
	}
	left, _ := filepath.Glob(fmt.Sprintf("/run/netns/bench-%d-*", os.Getpid()))
	if _, err := os.Stat(b.dir); len(left) > 0 || !os.IsNotExist(err) {
		t.Errorf("left behind: %v, %s (%v)", left, b.dir, err)
	}
}
