package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	tests := []struct {
		name, text string
		change     func(*config)
	}{
		{"empty", "", func(*config) {}},
		{"comments only", "# nothing\n#recorder:\n#  memory: 1\n", func(*config) {}},
		{"sections without keys", "recorder:\n#  memory: 1MiB\nwindow:\ntriggers:\n  resets:\n", func(*config) {}},
		{"one key leaves its neighbours", "recorder:\n  memory: 128MiB\n", func(c *config) { c.Recorder.Memory = 128 << 20 }},
		{"plain bytes", "recorder:\n  ring: 8388608\n", func(c *config) { c.Recorder.Ring = 8 << 20 }},
		{"automatic", "recorder:\n  memory: auto\n  ring: auto\n  cpu: 0.5%\n  namespaces: [/run/netns/blue]\n", func(c *config) {
			c.Recorder.CPU, c.Recorder.Namespaces = 0.5, []string{"/run/netns/blue"}
		}},
		{"deep", "triggers:\n  cool_down: 1m\n  resets: {enabled: false, threshold: 7.5}\n", func(c *config) {
			c.Triggers.CoolDown, c.Triggers.Resets.Enabled, c.Triggers.Resets.Threshold = time.Minute, false, 7.5
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, want := defaultConfig(), defaultConfig()
			tt.change(&want)
			if err := parseConfig([]byte(tt.text), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPackagedConfigSaysTheDefaults: every line of the shipped file is a comment
// that shows a default; without the comment marks it must mean the same.
func TestPackagedConfigSaysTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../../packaging/config/tcpcoroner.yaml")
	if err != nil {
		t.Fatal(err)
	}
	open := regexp.MustCompile(`(?m)^#((?:  )*[a-z_]+:)`).ReplaceAllString(string(text), "$1")
	if !strings.Contains(open, "\n  memory: auto") {
		t.Errorf("nothing is uncommented:\n%.600s", open)
	}
	for _, text := range []string{string(text), open} {
		got := defaultConfig()
		if err := parseConfig([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(defaultConfig(), got); diff != "" {
			t.Errorf("config (-default +file):\n%s", diff)
		}
	}
	for _, key := range []string{"memory", "ring", "age", "cpu", "namespaces", "discover_namespaces", "overlay", "self_test", "before", "after", "max", "cool_down", "window", "threshold", "factor",
		"usage", "rearm", "drops", "insert_failed", "max_age", "max_bytes"} {
		if !strings.Contains(open, key+":") {
			t.Errorf("the file does not show %s", key)
		}
	}
}

func TestSizes(t *testing.T) {
	tests := []struct {
		name string
		c    recorderConfig
		ram  uint64
		want sizes
	}{
		{"small host", recorderConfig{}, 512 << 20, sizes{32 << 20, 8 << 20, 0}},
		{"4 GiB", recorderConfig{}, 4 << 30, sizes{64 << 20, 16 << 20, 0}},
		{"large host", recorderConfig{}, 512 << 30, sizes{256 << 20, 32 << 20, 0}},
		{"given", recorderConfig{Memory: 100 << 20, Ring: 9 << 20}, 4 << 30, sizes{100 << 20, 9 << 20, 0}},
		{"namespaces", recorderConfig{Namespaces: []string{"a", "b"}}, 4 << 30, sizes{64 << 20, 16 << 20, 2}},
		{"discovered", recorderConfig{Discover: true}, 4 << 30, sizes{64 << 20, 16 << 20, 8}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.c.sizes(tt.ram); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
