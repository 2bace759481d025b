package evidence

import (
	"net/netip"
	"time"
)

// Snapshot is one look at the host.
type Snapshot struct {
	Taken      time.Time        `json:"taken"`
	Took       time.Duration    `json:"took_ns"`
	Sockets    []Socket         `json:"sockets"`
	Counters   Counters         `json:"counters"`
	Conntrack  *Conntrack       `json:"conntrack,omitempty"`
	Interfaces []InterfaceStats `json:"interfaces,omitempty"`
	// Addresses are the host's own in this network namespace.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Implicated is what else was looked at for the sake of certain connections,
	// peers and processes; nil if nobody asked.
	Implicated *Implicated `json:"implicated,omitempty"`
	// Missing lists what could not be read, and why: missing is not zero.
	Missing []Missing `json:"missing,omitempty"`
}

// Missing is a piece of evidence that could not be had.
type Missing struct {
	What string `json:"what"`
	Why  string `json:"why"`
	// Fix says what the operator can do about it; empty if nothing.
	Fix string `json:"fix,omitempty"`
}

// Socket is one TCP socket from inet_diag (sock_diag(7)).
type Socket struct {
	// State is the kernel's name in semantic-convention spelling: "established",
	// "listen", "syn_received", "close_wait", ...
	State  string         `json:"state"`
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote,omitzero"`
	// RecvQueue and SendQueue are bytes; of a listener they are the accept queue's
	// length and its limit (the backlog), in connections.
	RecvQueue uint32 `json:"recv_queue"`
	SendQueue uint32 `json:"send_queue"`
	UID       uint32 `json:"uid"`
	Inode     uint32 `json:"inode,omitempty"`
	// Interface is the ifindex the socket is bound to, 0 if none.
	Interface uint32 `json:"interface,omitempty"`
	// Cookie names the socket as long as the host is up (SO_COOKIE).
	Cookie uint64 `json:"cookie,omitempty"`
	// Timer is the one that runs; nil if none does.
	Timer *Timer `json:"timer,omitempty"`
	// Drops counts the packets that the socket itself threw away; of a listener,
	// connections that found its queue full too (sk_drops, SK_MEMINFO_DROPS).
	Drops uint32 `json:"drops,omitempty"`
	// RecvBuffer and SendBuffer are the limits in bytes of kernel memory, which
	// includes overhead.
	RecvBuffer uint32 `json:"recv_buffer,omitempty"`
	SendBuffer uint32 `json:"send_buffer,omitempty"`
	// Congestion is the congestion control's name ("cubic").
	Congestion string `json:"congestion,omitempty"`
	TOS        uint8  `json:"tos,omitempty"`
	// ShutdownRead and ShutdownWrite are the shutdown(2) bits.
	ShutdownRead  bool `json:"shutdown_read,omitempty"`
	ShutdownWrite bool `json:"shutdown_write,omitempty"`
	// Mark is SO_MARK, which needs CAP_NET_ADMIN to see.
	Mark uint32 `json:"mark,omitempty"`
	// CgroupID is the inode of the cgroup that the socket was made in (version 2).
	CgroupID uint64   `json:"cgroup_id,omitempty"`
	Info     *TCPInfo `json:"tcp_info,omitempty"`
	Owner    *Owner   `json:"owner,omitempty"`
}

// The kinds of timers.
const (
	TimerRetransmit = "retransmit"
	TimerKeepalive  = "keepalive"
	TimerTimeWait   = "time_wait"
	// TimerProbe asks a peer whose window is closed (persist).
	TimerProbe = "probe"
)

// Timer is a socket's running timer.
type Timer struct {
	Kind string `json:"kind"`
	// Expires is the time left.
	Expires time.Duration `json:"expires_ns"`
	// Tries counts the retransmissions or unanswered probes so far.
	Tries uint8 `json:"tries,omitempty"`
}

// Listening tells whether the socket is a listener.
func (s *Socket) Listening() bool { return s.State == "listen" }

// TCPInfo is the part of struct tcp_info (tcp(7)) that explains a reset.
type TCPInfo struct {
	RTT           time.Duration `json:"rtt_ns"`
	RTO           time.Duration `json:"rto_ns"`
	Retransmits   uint8         `json:"retransmits"`
	TotalRetrans  uint32        `json:"total_retrans"`
	Unacked       uint32        `json:"unacked"`
	Lost          uint32        `json:"lost"`
	CongestionWnd uint32        `json:"cwnd"`
	PMTU          uint32        `json:"pmtu"`
	SndMSS        uint32        `json:"snd_mss"`
	// LastSent and LastReceived are the idle times of each direction.
	LastSent     time.Duration `json:"last_data_sent_ns"`
	LastReceived time.Duration `json:"last_data_received_ns"`
	BytesAcked   uint64        `json:"bytes_acked"`
	BytesRecv    uint64        `json:"bytes_received"`
	NotSentBytes uint32        `json:"not_sent_bytes"`
	// CAState is the congestion state: "disorder", "cwr", "recovery" or "loss";
	// empty if all is well ("open").
	CAState string `json:"ca_state,omitempty"`
	// Probes counts unanswered window or keepalive probes, Backoff the doublings
	// of the retransmission timeout.
	Probes  uint8 `json:"probes,omitempty"`
	Backoff uint8 `json:"backoff,omitempty"`
	// Options are those that both ends agreed on: "timestamps", "sack", "wscale",
	// "ecn", "syn_data".
	Options []string `json:"options,omitempty"`
	// SndWnd is the window that the peer offers, in bytes; 0 before Linux 5.4.
	SndWnd uint32 `json:"snd_wnd,omitempty"`
}

// Owner is the process that holds a socket.
type Owner struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	Exe  string `json:"exe,omitempty"`
	UID  uint32 `json:"uid"`
	// Started is the process' start time; with PID it names a process for good.
	Started time.Time `json:"started,omitzero"`
	Cgroup  string    `json:"cgroup,omitempty"`
	// Unit is the systemd unit, from the cgroup path.
	Unit string `json:"unit,omitempty"`
}

// Counters are the kernel's own, by "Group.Name" as in /proc/net/snmp and
// /proc/net/netstat ("Tcp.OutRsts", "TcpExt.ListenOverflows").
type Counters struct {
	Time   time.Time         `json:"time"`
	Values map[string]uint64 `json:"values"`
}

// Delta is what the counter grew by since earlier; 0 if it is not in both.
func (c Counters) Delta(earlier Counters, name string) uint64 {
	now, ok := c.Values[name]
	before, had := earlier.Values[name]
	if !ok || !had || now < before {
		return 0
	}
	return now - before
}

// Conntrack is the state of the connection-tracking table.
type Conntrack struct {
	Count uint64 `json:"count"`
	Max   uint64 `json:"max"`
	// Drop, EarlyDrop and InsertFailed are sums over all CPUs since boot
	// (IPCTNL_MSG_CT_GET_STATS_CPU).
	Drop         uint64 `json:"drop"`
	EarlyDrop    uint64 `json:"early_drop"`
	InsertFailed uint64 `json:"insert_failed"`
	Invalid      uint64 `json:"invalid"`
	// Found, Error and SearchRestart are sums like these.
	Found         uint64 `json:"found,omitempty"`
	Error         uint64 `json:"error,omitempty"`
	SearchRestart uint64 `json:"search_restart,omitempty"`
	// TopTalkers are the sources with most entries, largest first.
	TopTalkers []Talker `json:"top_talkers,omitempty"`
	// Sampled is the number of entries that TopTalkers was counted from; less
	// than Count if the dump was cut short.
	Sampled uint64 `json:"sampled,omitempty"`
}

// Usage is count over max, from 0 to 1.
func (c *Conntrack) Usage() float64 {
	if c == nil || c.Max == 0 {
		return 0
	}
	return float64(c.Count) / float64(c.Max)
}

// Talker is a source address and destination with its number of entries.
type Talker struct {
	Source      netip.Addr     `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Protocol    string         `json:"protocol"`
	Entries     uint64         `json:"entries"`
}

// InterfaceStats are an interface's counters since boot (rtnl_link_stats64).
type InterfaceStats struct {
	Interface
	Up        bool   `json:"up"`
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	TxErrors  uint64 `json:"tx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
	RxMissed  uint64 `json:"rx_missed"`
}
