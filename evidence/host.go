package evidence

import (
	"net/netip"
	"time"
)

// Implicated is what a snapshot tells of the host for the sake of certain
// connections, their peers and processes. What is empty could not be read, which
// Snapshot.Missing says, or is not there.
type Implicated struct {
	Processes []Process `json:"processes,omitempty"`
	// Cgroups are those of Processes, each once.
	Cgroups []Cgroup `json:"cgroups,omitempty"`
	// Tracked are the connection-tracking entries of the connections.
	Tracked []TrackedFlow `json:"tracked,omitempty"`
	// Rules is what the firewall may refuse or drop.
	Rules *Ruleset `json:"rules,omitempty"`
	// Routes lead to the peers.
	Routes []Route `json:"routes,omitempty"`
	// Ports are the busiest users of ephemeral ports, busiest first.
	Ports *PortRange `json:"ports,omitempty"`
	// Sysctls are the settings that decide about resets, by name.
	Sysctls []Sysctl `json:"sysctls,omitempty"`
	Load    *Load    `json:"load,omitempty"`
	Disks   []Disk   `json:"disks,omitempty"`
	Clock   *Clock   `json:"clock,omitempty"`
	// Changes are what is new on the host in the last hour, oldest first.
	Changes []Change `json:"changes,omitempty"`
}

// Process is a process that holds an implicated socket.
type Process struct {
	Owner
	// Command is the redacted command line.
	Command string `json:"command,omitempty"`
	// Container is the id in the cgroup path, Runtime what made it ("docker",
	// "containerd", "crio", "podman", "lxc"); empty if there is none.
	Container string `json:"container,omitempty"`
	Runtime   string `json:"runtime,omitempty"`
	// State is the kernel's letter and word: "S (sleeping)".
	State   string `json:"state"`
	Threads int    `json:"threads"`
	// FDs is how many descriptors are open, MaxFDs the soft limit (RLIMIT_NOFILE);
	// 0 where not known or unlimited.
	FDs    int    `json:"fds,omitempty"`
	MaxFDs uint64 `json:"max_fds,omitempty"`
	// Resident is physical memory in bytes.
	Resident uint64 `json:"resident,omitempty"`
	// Waiting is the kernel function that it sleeps in (wchan), "" if it runs.
	Waiting string `json:"waiting,omitempty"`
}

// Cgroup is the load and the limits of one control group, of version 2 or of the
// controllers of version 1.
type Cgroup struct {
	// Path is that of proc(5), below the root of the hierarchy.
	Path string `json:"path"`
	// Periods, Throttled and ThrottledTime are of the CPU quota: periods there
	// were, those it was held back in, and for how long.
	Periods       uint64        `json:"periods,omitempty"`
	Throttled     uint64        `json:"throttled,omitempty"`
	ThrottledTime time.Duration `json:"throttled_time_ns,omitempty"`
	// Memory and MaxMemory are bytes; MaxMemory is 0 without limit.
	Memory    uint64 `json:"memory,omitempty"`
	MaxMemory uint64 `json:"max_memory,omitempty"`
	// AtMax counts how often usage hit the limit, Kills the processes that the
	// OOM killer took.
	AtMax uint64 `json:"at_max,omitempty"`
	Kills uint64 `json:"oom_kills,omitempty"`
	// Pressure is by resource: "cpu", "io", "memory".
	Pressure map[string]Pressure `json:"pressure,omitempty"`
}

// Pressure is a resource's stall information (Documentation/accounting/psi.rst).
type Pressure struct {
	Some Stall `json:"some"`
	// Full is when nobody could work.
	Full Stall `json:"full"`
}

// Stall is the share of time, in percent, that tasks waited.
type Stall struct {
	Avg10  float64       `json:"avg10"`
	Avg60  float64       `json:"avg60"`
	Avg300 float64       `json:"avg300"`
	Total  time.Duration `json:"total_ns"`
}

// Tuple is one direction of a tracked connection.
type Tuple struct {
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
}

// TrackedFlow is one entry of connection tracking.
type TrackedFlow struct {
	// Original is the tuple of the first packet, Reply that of answers: its
	// reverse, unless addresses are translated.
	Original Tuple `json:"original"`
	Reply    Tuple `json:"reply"`
	// State is that of the tracker ("established"), spelled as in Socket; it is
	// not the socket's.
	State string `json:"state,omitempty"`
	// Status are the flags: "seen_reply", "assured", "confirmed", "src_nat",
	// "dst_nat", "dying", "offload", "hw_offload" and so on.
	Status []string `json:"status,omitempty"`
	// Timeout is the time left.
	Timeout time.Duration `json:"timeout_ns"`
	Mark    uint32        `json:"mark,omitempty"`
	Zone    uint16        `json:"zone,omitempty"`
	// Packets and Bytes of both directions; 0 unless nf_conntrack_acct is on.
	Packets [2]uint64 `json:"packets,omitzero"`
	Bytes   [2]uint64 `json:"bytes,omitzero"`
}

// Translated tells whether an address or a port is translated.
func (f *TrackedFlow) Translated() bool {
	return f.Reply != Tuple{Source: f.Original.Destination, Destination: f.Original.Source}
}

// Route is the way to one peer.
type Route struct {
	Peer netip.Addr `json:"peer"`
	// Type is "unicast", "local", "blackhole", "unreachable", "prohibit", ...
	Type string `json:"type,omitempty"`
	// Prefix, Table and Protocol are of the route that matches; who made it by
	// the names of rt_protos ("kernel", "static", "dhcp") or a number.
	Prefix   netip.Prefix `json:"prefix,omitzero"`
	Table    uint32       `json:"table,omitempty"`
	Protocol string       `json:"protocol,omitempty"`
	// Gateway is invalid for a peer on the link.
	Gateway   netip.Addr `json:"gateway,omitzero"`
	Source    netip.Addr `json:"source,omitzero"`
	Interface string     `json:"interface,omitempty"`
	Index     uint32     `json:"index,omitempty"`
	// MTU is the route's own if it has one, otherwise the interface's.
	MTU uint32 `json:"mtu,omitempty"`
	// PMTU is learned from the path (ICMP) and forgotten after PMTUExpires; 0 if
	// none is cached.
	PMTU        uint32        `json:"pmtu,omitempty"`
	PMTUExpires time.Duration `json:"pmtu_expires_ns,omitempty"`
	// Neighbor is the gateway, or the peer itself on the link; nil if the kernel
	// knows none.
	Neighbor *Neighbor `json:"neighbor,omitempty"`
	// Error is the kernel's refusal to route there.
	Error string `json:"error,omitempty"`
}

// Neighbor is an entry of the neighbour table.
type Neighbor struct {
	Address netip.Addr `json:"address"`
	Index   uint32     `json:"index"`
	// State is "reachable", "stale", "delay", "probe", "failed", "incomplete",
	// "permanent" or "noarp".
	State string `json:"state"`
	// MAC is the link-layer address; empty if not resolved.
	MAC string `json:"mac,omitempty"`
}

// PortRange tells how far ephemeral ports are used up.
type PortRange struct {
	// First and Last bound ip_local_port_range; Reserved are the ports in it that
	// ip_local_reserved_ports takes out.
	First    uint16 `json:"first"`
	Last     uint16 `json:"last"`
	Reserved int    `json:"reserved,omitempty"`
	// Uses are the busiest, busiest first.
	Uses []PortUse `json:"uses,omitempty"`
}

// Available is the number of ports that one source has for one destination.
func (r *PortRange) Available() int { return max(int(r.Last)-int(r.First)+1-r.Reserved, 0) }

// PortUse counts the ephemeral ports of one source to one destination, where
// each port can be used once.
type PortUse struct {
	Source      netip.Addr     `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// Used counts all sockets, TimeWait those that are only waiting.
	Used     int `json:"used"`
	TimeWait int `json:"time_wait,omitempty"`
}

// Sysctl is one kernel setting.
type Sysctl struct {
	// Name is that of sysctl(8): "net.ipv4.tcp_syncookies".
	Name  string `json:"name"`
	Value string `json:"value"`
	// Default is the kernel's; empty where it depends on the host's memory.
	Default string `json:"default,omitempty"`
}

// Changed tells whether somebody set it to other than the kernel's default.
func (s *Sysctl) Changed() bool { return s.Default != "" && s.Value != s.Default }

// Load is how busy the host is.
type Load struct {
	// Averages are those of 1, 5 and 15 minutes (proc_loadavg(5)).
	Averages [3]float64 `json:"averages"`
	// Running and Tasks count threads.
	Running int `json:"running"`
	Tasks   int `json:"tasks"`
	// CPUs is how many are online.
	CPUs int `json:"cpus,omitempty"`
	// MemoryTotal and MemoryAvailable are bytes.
	MemoryTotal     uint64 `json:"memory_total,omitempty"`
	MemoryAvailable uint64 `json:"memory_available,omitempty"`
	// IOWait is the time that CPUs waited for disks since boot, of all CPUs.
	IOWait time.Duration `json:"io_wait_ns"`
	// Pressure is by resource: "cpu", "io", "memory"; nil without CONFIG_PSI.
	Pressure map[string]Pressure `json:"pressure,omitempty"`
}

// Disk is what a block device did since boot (Documentation/admin-guide/iostats.rst).
type Disk struct {
	Name     string `json:"name"`
	Reads    uint64 `json:"reads"`
	Writes   uint64 `json:"writes"`
	InFlight uint64 `json:"in_flight"`
	// Busy is the time with something in flight, Weighted the sum of the times
	// that each request waited.
	Busy     time.Duration `json:"busy_ns"`
	Weighted time.Duration `json:"weighted_ns"`
}

// Clock says how far the host's time can be trusted.
type Clock struct {
	// Synchronized is false with STA_UNSYNC (adjtimex(2)).
	Synchronized bool `json:"synchronized"`
	// Offset is what is still to be corrected, MaxError a bound and Error an
	// estimate of the distance from true time.
	Offset   time.Duration `json:"offset_ns"`
	MaxError time.Duration `json:"max_error_ns"`
	Error    time.Duration `json:"error_ns"`
	// Boot is when the host started.
	Boot time.Time `json:"boot,omitzero"`
}

// The kinds of changes.
const (
	ChangeRuleset = "ruleset"
	ChangeSysctl  = "sysctl"
	ChangePackage = "package"
	ChangeStart   = "start"
)

// Change is one thing that is not as it was.
type Change struct {
	// Time is when it happened or, of ChangeRuleset and ChangeSysctl, when it was
	// first seen.
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// What is the setting, the package or the process.
	What   string `json:"what"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}
