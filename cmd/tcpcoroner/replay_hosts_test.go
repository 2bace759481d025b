package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tcpcoroner/evidence"
)

func TestByHost(t *testing.T) {
	odd := filepath.Join(t.TempDir(), "a=b.pcap")
	if err := os.WriteFile(odd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hosts, err := byHost([]string{"web=a.pcap", "db-1=b.pcap", "web=dir/c=d.pcap"}, "192.0.2.0/24,web=2001:db8::1", "db-1=02:00:00:00:00:01")
	if err != nil || len(hosts) != 2 {
		t.Fatalf("%d hosts: %v", len(hosts), err)
	}
	web, db := hosts[0], hosts[1]
	if web.host != "web" || !slices.Equal(web.files, []string{"a.pcap", "dir/c=d.pcap"}) || len(web.networks) != 2 || len(web.macs) != 0 {
		t.Errorf("web is %+v", web)
	}
	if db.host != "db-1" || len(db.networks) != 1 || len(db.macs) != 1 {
		t.Errorf("db-1 is %+v", db)
	}
	if hosts, err := byHost([]string{odd, "/x/y=z.pcap"}, "", ""); err != nil || len(hosts) != 1 || hosts[0].host != "" {
		t.Errorf("%d hosts: %v", len(hosts), err)
	}
	for want, args := range map[string][2]string{
		"some files name their host and some do not":              {"web=a.pcap b.pcap", ""},
		`"db=192.0.2.1" is of host db, of which there is no file`: {"web=a.pcap", "db=192.0.2.1"},
		`"me" is not a network`:                                   {"web=a.pcap", "web=me"},
	} {
		if _, err := byHost(strings.Fields(args[0]), args[1], ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// A connection that two hosts captured is one flow, told from the host that refused it.
func TestReplayHosts(t *testing.T) {
	dir := t.TempDir()
	var args []string
	for _, host := range []string{"client", "server"} {
		file := filepath.Join(dir, host+".pcapng")
		if err := os.WriteFile(file, smallCapture(t), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, host+"="+file)
	}
	out, errs, code := cli(t, append([]string{"replay", "--format", "json", "--local", "client=192.0.2.2,server=192.0.2.1"}, args...)...)
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	inc := readIncident(t, []byte(out))
	if len(inc.Flows) != 1 || inc.FlowsTotal != 1 || inc.Window.ResetCount != 1 {
		t.Fatalf("%d flows of %d, %d resets", len(inc.Flows), inc.FlowsTotal, inc.Window.ResetCount)
	}
	f := &inc.Flows[0]
	if f.Namespace != 2 || f.Reset.Direction != evidence.Sent || inc.Window.NamespaceLabel(f.Namespace) != "server" {
		t.Errorf("it is told from namespace %d (%s), where the RST was %v: %s", f.Namespace, inc.Window.NamespaceLabel(f.Namespace), f.Reset.Direction, f.Verdict)
	}
}
