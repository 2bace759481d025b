package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tcpcoroner/evidence"
)

func TestParseRoles(t *testing.T) {
	role := func(prefix string, p evidence.Party) evidence.Role {
		return evidence.Role{Prefix: netip.MustParsePrefix(prefix), Party: p}
	}
	tests := []struct {
		name, text string
		want       []evidence.Role
		err        string
	}{
		{"json", `{"192.0.2.0/24": "client", "2001:db8::/64": "proxy", "192.0.2.7/32": "network"}`,
			[]evidence.Role{role("192.0.2.0/24", evidence.Client), role("2001:db8::/64", evidence.Proxy), role("192.0.2.7/32", evidence.Network)}, ""},
		{"yaml", "# ours\n192.0.2.0/24: client\n\"2001:db8::/64\": server\n",
			[]evidence.Role{role("192.0.2.0/24", evidence.Client), role("2001:db8::/64", evidence.Server)}, ""},
		{"yaml, unquoted IPv6", "2001:db8::/64: server\n", []evidence.Role{role("2001:db8::/64", evidence.Server)}, ""},
		{"one address", "192.0.2.1: proxy", []evidence.Role{role("192.0.2.1/32", evidence.Proxy)}, ""},
		{"host bits", "192.0.2.1/24: proxy", []evidence.Role{role("192.0.2.0/24", evidence.Proxy)}, ""},
		{"empty", "", nil, "names no network: write a network"},
		{"only a comment", "# nothing\n", nil, "names no network"},
		{"list", "- 192.0.2.0/24\n", nil, "line 1: it is no mapping"},
		{"text", "hello\n", nil, "line 1: it is no mapping"},
		{"bad network", "192.0.2.0/24: client\n10.0.0/8: server\n", nil, `line 2: "10.0.0/8" is not a network: write it as 192.0.2.0/24`},
		{"bad party", "192.0.2.0/24: clients\n", nil, `line 1: the party of 192.0.2.0/24 is "clients": must be one of client, proxy, server, network`},
		{"no party", "192.0.2.0/24:\n", nil, `the party of 192.0.2.0/24 is`},
		{"nested", "192.0.2.0/24: {a: b}\n", nil, `the party of 192.0.2.0/24 is`},
		{"twice", "192.0.2.0/24: client\n192.0.2.9/24: server\n", nil, "line 2: network 192.0.2.0/24 stands twice"},
		{"damaged", `{"192.0.2.0/24": "client"`, nil, "write a network"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseRoles([]byte(tt.text))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("roles (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadRolesNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roles.json")
	if _, err := loadRoles(path); err == nil || !strings.Contains(err.Error(), path) || exitCode(err) != exitUsage {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadRoles(path); err == nil || !strings.Contains(err.Error(), path) || exitCode(err) != exitUsage {
		t.Errorf("empty file: %v", err)
	}
}

func FuzzParseRoles(f *testing.F) {
	f.Add([]byte(`{"192.0.2.0/24": "client"}`))
	f.Add([]byte("2001:db8::/64: server\n"))
	f.Add([]byte("a: &b\n? *b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		roles, err := parseRoles(text)
		if (err == nil) != (len(roles) > 0) {
			t.Errorf("%d roles, error %v", len(roles), err)
		}
	})
}

// The configuration takes the same mapping, and an incident carries it.
func TestRolesOfTheConfiguration(t *testing.T) {
	c := defaultConfig()
	if err := parseConfig([]byte("roles:\n  192.0.2.0/24: client\n  2001:db8::/64: server\n"), &c); err != nil {
		t.Fatal(err)
	}
	want := []evidence.Role{
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Party: evidence.Client},
		{Prefix: netip.MustParsePrefix("2001:db8::/64"), Party: evidence.Server},
	}
	k := keeper{roles: c.Roles}
	got := k.begin(evidence.Firing{}, 0).inc.Roles
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("roles (-want +got):\n%s", diff)
	}
	for text, want := range map[string]string{
		"roles:\n  192.0.2.0/24: clients\n":                        `roles: line 2: the party of 192.0.2.0/24 is "clients": must be one of`,
		"roles:\n  10.0.0/8: client\n":                             `roles: line 2: "10.0.0/8" is not a network`,
		"roles: [a]\n":                                             "roles: line 1: it is no mapping",
		"roles:\n  192.0.2.0/24: client\n  192.0.2.9/24: server\n": "roles: line 3: network 192.0.2.0/24 stands twice",
	} {
		if err := parseConfig([]byte(text), &c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}
