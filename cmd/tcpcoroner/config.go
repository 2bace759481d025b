package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"tcpcoroner/evidence"
	"tcpcoroner/triggers"
)

// config is the file tcpcoroner.yaml(5), one struct a package that it configures.
type config struct {
	Recorder recorderConfig `yaml:"recorder"`
	Window   windowConfig   `yaml:"window"`
	Triggers triggersConfig `yaml:"triggers"`
	Store    storeConfig    `yaml:"store"`
	// Roles say whose the addresses of networks are; the longest prefix counts.
	Roles roleMap `yaml:"roles"`
}

type recorderConfig struct {
	// Memory bounds all that holds packets; Ring, the kernel's buffer, is a part of
	// it. 0 is automatic: see sizes.
	Memory autoSize `yaml:"memory"`
	Ring   autoSize `yaml:"ring"`
	Age    duration `yaml:"age"`
	CPU    percent  `yaml:"cpu"`
	// Namespaces are recorded beside the daemon's own; Discover finds more.
	Namespaces []string `yaml:"namespaces"`
	Discover   bool     `yaml:"discover_namespaces"`
	Overlay    bool     `yaml:"overlay"`
	SelfTest   duration `yaml:"self_test"`
	// Kernel is the most that is asked of the kernel itself.
	Kernel string `yaml:"kernel"`
}

type windowConfig struct {
	// Before and After are the window around a firing; Max bounds how long an
	// incident may grow while its trigger keeps firing.
	Before duration `yaml:"before"`
	After  duration `yaml:"after"`
	Max    duration `yaml:"max"`
}

// triggersConfig is the storm control, and each trigger's own configuration.
type triggersConfig struct {
	triggers.SetConfig `yaml:",inline"`
	Resets             triggers.HarmConfig            `yaml:"resets"`
	ResetRate          triggers.ResetsConfig          `yaml:"reset_rate"`
	Conntrack          triggers.ConntrackConfig       `yaml:"conntrack"`
	Listen             triggers.ListenConfig          `yaml:"listen"`
	AcceptQueue        triggers.QueueConfig           `yaml:"accept_queue"`
	SYNDrops           triggers.RiseConfig            `yaml:"syn_drops"`
	ConnectFailures    triggers.RiseConfig            `yaml:"connect_failures"`
	Timeouts           triggers.RiseConfig            `yaml:"timeouts"`
	Retransmissions    triggers.RetransmissionsConfig `yaml:"retransmissions"`
	Drops              triggers.RiseConfig            `yaml:"drops"`
	Memory             triggers.MemoryConfig          `yaml:"memory"`
	Ports              triggers.PortsConfig           `yaml:"ports"`
	Restarts           triggers.RestartsConfig        `yaml:"restarts"`
	Logs               triggers.LogsConfig            `yaml:"logs"`
	Webhook            triggers.WebhookConfig         `yaml:"webhook"`
}

// defaultTriggers has those off that fire on what is harmless on many hosts:
// resets without regard to what they did, and connections that fail to open,
// which health checks and scanners make all day.
func defaultTriggers() triggersConfig {
	t := triggersConfig{
		SetConfig: triggers.DefaultSet(), Resets: triggers.DefaultHarm(), ResetRate: triggers.DefaultResets(),
		Conntrack: triggers.DefaultConntrack(), Listen: triggers.DefaultListen(), AcceptQueue: triggers.DefaultQueue(),
		SYNDrops: triggers.DefaultSYNDrops(), ConnectFailures: triggers.DefaultConnectFailures(), Timeouts: triggers.DefaultTimeouts(),
		Retransmissions: triggers.DefaultRetransmissions(), Drops: triggers.DefaultDrops(), Memory: triggers.DefaultMemory(),
		Ports: triggers.DefaultPorts(), Restarts: triggers.DefaultRestarts(), Logs: triggers.DefaultLogs(),
		Webhook: triggers.DefaultWebhook(),
	}
	t.ResetRate.Enabled, t.ConnectFailures.Enabled = false, false
	t.DryRun = []string{}
	return t
}

// triggerNames are what dry_run may name: the sections above.
var triggerNames = []string{
	"resets", "reset_rate", "conntrack", "listen", "accept_queue", "syn_drops", "connect_failures", "timeouts",
	"retransmissions", "drops", "memory", "ports", "restarts", "logs", "webhook",
}

// validate names the first wrong field of each trigger.
func (t *triggersConfig) validate() (wrong []string) {
	rise := func(c triggers.RiseConfig, name string) error { return c.Validate(name) }
	for _, err := range []error{
		t.SetConfig.Validate(), t.Resets.Validate(), t.ResetRate.Validate(), t.Conntrack.Validate(), t.Listen.Validate(),
		t.AcceptQueue.Validate(), rise(t.SYNDrops, "syn_drops"), rise(t.ConnectFailures, "connect_failures"),
		rise(t.Timeouts, "timeouts"), t.Retransmissions.Validate(), rise(t.Drops, "drops"), t.Memory.Validate(),
		t.Ports.Validate(), t.Restarts.Validate(), t.Logs.Validate(), t.Webhook.Validate(),
	} {
		if err != nil {
			wrong = append(wrong, "triggers."+err.Error())
		}
	}
	for _, name := range t.DryRun {
		if !slices.Contains(triggerNames, name) {
			wrong = append(wrong, fmt.Sprintf("triggers.dry_run names %q: must be of %s", name, strings.Join(triggerNames, ", ")))
		}
	}
	return wrong
}

type storeConfig struct {
	MaxAge   duration `yaml:"max_age"`
	MaxBytes size     `yaml:"max_bytes"`
}

// defaultConfig is what runs without a file; packaging/config says the same.
func defaultConfig() config {
	var c config
	c.Recorder = recorderConfig{Age: duration(10 * time.Minute), CPU: 2, Namespaces: []string{}, SelfTest: duration(time.Minute), Kernel: evidence.LevelFull}
	c.Window = windowConfig{Before: duration(30 * time.Second), After: duration(5 * time.Second), Max: duration(30 * time.Second)}
	c.Triggers = defaultTriggers()
	c.Store = storeConfig{MaxAge: duration(30 * 24 * time.Hour), MaxBytes: 2 << 30}
	return c
}

// kernelLevels are the values of recorder.kernel.
var kernelLevels = []string{evidence.LevelFull, evidence.LevelReasons, evidence.LevelTuples, evidence.LevelPackets}

// defaultConfigFile is read where it exists; one given by --config must exist.
const defaultConfigFile = "/etc/tcpcoroner/tcpcoroner.yaml"

// loadConfig reads and checks a file over the defaults.
func loadConfig(path string) (config, error) {
	c := defaultConfig()
	name := path
	if name == "" {
		name = defaultConfigFile
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && path == "" {
		return c, nil
	}
	if err != nil {
		return c, usageError{fmt.Errorf("read configuration: %w: give --config a readable file", err)}
	}
	if err := parseConfig(text, &c); err != nil {
		return c, usageError{fmt.Errorf("configuration %s: %w", name, err)}
	}
	return c, nil
}

// parseConfig refuses unknown keys: a misspelt threshold must not pass unseen.
func parseConfig(text []byte, c *config) error {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return oneLine(err)
	}
	for _, doc := range file.Docs {
		if empty(doc.Body) {
			continue
		}
		if err := yaml.NodeToValue(doc.Body, c, yaml.Strict()); err != nil {
			return oneLine(err)
		}
	}
	return c.validate()
}

// empty takes away keys without a value, which the decoder would set to zero: a
// section of which every line is a comment means the defaults. It tells whether
// nothing is left.
func empty(n ast.Node) bool {
	switch n := n.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return true
	case *ast.MappingValueNode:
		return empty(n.Value)
	case *ast.MappingNode:
		n.Values = slices.DeleteFunc(n.Values, func(v *ast.MappingValueNode) bool { return empty(v.Value) })
		return len(n.Values) == 0
	}
	return false
}

// oneLine drops the excerpt of a YAML error and says what the operator can do.
func oneLine(err error) error {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil {
		return err
	}
	text := e.GetMessage()
	var unknown *yaml.UnknownFieldError
	var kind *yaml.TypeError
	switch {
	case errors.As(err, &unknown):
		text += ": remove it or correct its spelling; tcpcoroner.yaml(5) lists all keys"
	case errors.As(err, &kind):
		text = fmt.Sprintf("%s: %q is not a value of the kind that belongs there (%v)", keyOf(kind.Token), kind.Token.Value, kind.DstType)
	}
	return fmt.Errorf("line %d: %s", e.GetToken().Position.Line, text)
}

// keyOf is the key whose value a token is: it stands before the colon.
func keyOf(t *token.Token) string {
	if t.Prev == nil || t.Prev.Prev == nil {
		return "value"
	}
	return t.Prev.Prev.Value
}

// validate names every field that is out of bounds, its value, and the bounds.
func (c *config) validate() error {
	var wrong []string
	check := func(ok bool, field string, value any, rule string) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s is %v: must be %s", field, value, rule))
		}
	}
	r, w, t := c.Recorder, c.Window, c.Triggers
	check(r.Memory == 0 || r.Memory >= minMemory && r.Memory <= 64<<30, "recorder.memory", r.Memory, "auto, or from 16MiB to 64GiB")
	check(r.Ring == 0 || r.Ring >= 1<<20 && r.Ring <= 1<<30, "recorder.ring", r.Ring, "auto, or from 1MiB to 1GiB")
	check(r.Memory == 0 || r.Ring == 0 || r.Ring <= r.Memory/2, "recorder.ring", r.Ring, fmt.Sprintf("at most half of recorder.memory, which is %v", r.Memory))
	check(r.CPU >= 0 && r.CPU <= 100, "recorder.cpu", r.CPU, "from 0% (no bound) to 100% of one core")
	check(r.SelfTest == 0 || r.SelfTest >= duration(time.Second), "recorder.self_test", r.SelfTest, "0s (never), or 1s or more")
	check(slices.Contains(kernelLevels, r.Kernel), "recorder.kernel", r.Kernel, strings.Join(kernelLevels, ", "))
	check(r.Age >= duration(time.Second), "recorder.age", r.Age, "1s or more")
	check(w.Before >= 0 && w.Before <= duration(time.Hour), "window.before", w.Before, "from 0s to 1h")
	check(w.After >= duration(time.Second), "window.after", w.After, "1s or more")
	check(w.Max >= w.After && w.Max <= duration(10*time.Minute), "window.max", w.Max, "from window.after to 10m")
	check(c.Store.MaxAge >= duration(time.Minute), "store.max_age", c.Store.MaxAge, "1m or more")
	check(c.Store.MaxBytes >= 16<<20, "store.max_bytes", c.Store.MaxBytes, "16MiB or more")
	wrong = append(wrong, t.validate()...)
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; "))
}

// duration is a time.Duration that says which key was wrong.
type duration time.Duration

func (d duration) String() string { return time.Duration(d).String() }

// UnmarshalYAML reads "30s", "5m".
func (d *duration) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return at(n, fmt.Sprintf("%q is not a duration: write a number with its unit, such as 500ms, 30s, 5m or 24h", text))
	}
	*d = duration(v)
	return nil
}

// size is a number of bytes.
type size uint64

func (s size) String() string { return humanize.IBytes(uint64(s)) }

// UnmarshalYAML reads "64MiB", "2GiB", or plain bytes.
func (s *size) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	v, err := humanize.ParseBytes(text)
	if err != nil {
		return at(n, fmt.Sprintf("%q is not a size: write a number with its unit, such as 64MiB or 2GiB", text))
	}
	*s = size(v)
	return nil
}

// autoSize is a size, or 0 for "auto".
type autoSize size

func (s autoSize) String() string {
	if s == 0 {
		return "auto"
	}
	return size(s).String()
}

// UnmarshalYAML reads "auto", or a size.
func (s *autoSize) UnmarshalYAML(n ast.Node) error {
	if text, err := scalar(n); err == nil && text == "auto" {
		*s = 0
		return nil
	}
	var v size
	if err := v.UnmarshalYAML(n); err != nil {
		return err
	}
	if v == 0 {
		return at(n, "0 is no size: write auto, or a number with its unit")
	}
	*s = autoSize(v)
	return nil
}

// percent is a part of one core.
type percent float64

func (p percent) String() string { return strconv.FormatFloat(float64(p), 'g', -1, 64) + "%" }

// UnmarshalYAML reads "2%".
func (p *percent) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	number, ok := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil {
		return at(n, fmt.Sprintf("%q is not a percentage: write a number with a percent sign, such as 2%%", text))
	}
	*p = percent(v)
	return nil
}

func scalar(n ast.Node) (string, error) {
	s, ok := n.(ast.ScalarNode)
	if !ok {
		return "", at(n, "a single value belongs here")
	}
	return fmt.Sprint(s.GetValue()), nil
}

// at puts line and key before a message.
func at(n ast.Node, text string) error {
	key := n.GetPath()
	if len(key) > 2 {
		key = key[2:] // "$."
	}
	return fmt.Errorf("line %d, %s: %s", n.GetToken().Position.Line, key, text)
}
