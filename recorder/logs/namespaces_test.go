package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// proxy makes a process of a proxy in a namespace, which writes a log.
func proxy(t *testing.T, procRoot, log string, pid int, netns string) {
	t.Helper()
	dir := filepath.Join(procRoot, fmt.Sprint(pid))
	write(t, filepath.Join(dir, "comm"), "nginx\n")
	write(t, filepath.Join(dir, "fdinfo/3"), "pos:\t0\nflags:\t02102001\n")
	for link, target := range map[string]string{"fd/3": log, "root": "/", "ns/net": netns} {
		name := filepath.Join(dir, link)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogsOfNamespaces(t *testing.T) {
	procRoot, logs := t.TempDir(), t.TempDir()
	for pid, netns := range map[int]string{21: "net:[7]", 22: "net:[8]", 23: "unreadable"} {
		name := filepath.Join(logs, fmt.Sprintf("error.log.%d", pid))
		write(t, name, stamped(0, fmt.Sprintf("%d: connection reset by peer", pid)))
		proxy(t, procRoot, name, pid, netns)
	}
	for name, tt := range map[string]struct {
		q    Query
		want []string
	}{
		"all namespaces":                       {Query{}, []string{"21: connection reset by peer", "22: connection reset by peer", "23: connection reset by peer"}},
		"one namespace":                        {Query{NetNS: []uint64{7}}, []string{"21: connection reset by peer", "23: connection reset by peer"}},
		"several":                              {Query{NetNS: []uint64{7, 8}}, []string{"21: connection reset by peer", "22: connection reset by peer", "23: connection reset by peer"}},
		"an implicated process of another one": {Query{NetNS: []uint64{7}, PIDs: []int{22}}, []string{"22: connection reset by peer", "21: connection reset by peer", "23: connection reset by peer"}},
		"nobody's":                             {Query{NetNS: []uint64{9}}, []string{"23: connection reset by peer"}},
	} {
		t.Run(name, func(t *testing.T) {
			lines, missing := reader(t, Config{ProcRoot: procRoot}).Around(t.Context(), window(tt.q))
			none(t, missing)
			expect(t, lines, tt.want...)
		})
	}
}

// A unit may hold processes of several namespaces; what the manager says of it
// comes from process 1.
func TestJournalOfNamespaces(t *testing.T) {
	procRoot := t.TempDir()
	for pid, netns := range map[int]string{1: "net:[8]", 21: "net:[7]", 22: "net:[8]", 24: "net:[8]"} {
		proxy(t, procRoot, "/dev/null", pid, netns)
	}
	entry := func(pid int, more string) string {
		return fmt.Sprintf(`{"MESSAGE":"of %d","_PID":"%d","_SYSTEMD_UNIT":"web.service",%s"__REALTIME_TIMESTAMP":"1795435200000000"}`, pid, pid, more) + "\n"
	}
	all := entry(21, "") + entry(22, "") + entry(23, "") + entry(24, "") + entry(1, `"UNIT":"web.service",`)
	j := script(t, "cat <<'END'\n"+all+"END")
	q := window(Query{Units: []string{"web.service"}, PIDs: []int{24}, NetNS: []uint64{7}})
	lines, missing := reader(t, Config{ProcRoot: procRoot, Journalctl: j}).Around(t.Context(), q)
	none(t, missing)
	var pids []int
	for _, l := range lines {
		pids = append(pids, l.PID)
	}
	if want := []int{21, 23, 24, 1}; !slices.Equal(pids, want) {
		t.Errorf("lines of %v, want %v", pids, want)
	}
}

func TestParseNamespace(t *testing.T) {
	for link, want := range map[string]uint64{"net:[4026531840]": 4026531840, "": 0, "net:[]": 0, "mnt:[5]": 0, "net:[5": 0, "net:[-5]": 0} {
		got, ok := parseNamespace(link)
		if ok != (want != 0) || ok && got != want {
			t.Errorf("%q: %d, %v", link, got, ok)
		}
	}
}
