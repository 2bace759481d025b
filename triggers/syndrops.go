package triggers

import (
	"time"

	"tcpcoroner/evidence"
)

// DefaultSYNDrops fires at 5 SYNs in 10 s that found their queue full.
func DefaultSYNDrops() RiseConfig {
	return RiseConfig{Enabled: true, Window: 10 * time.Second, Threshold: 5, Factor: 4}
}

// NewSYNDrops makes the trigger "syn_drops": SYNs that found the queue of half-open
// connections full (net/ipv4/tcp_input.c, tcp_syn_flood_action) and were dropped or
// answered with a cookie. Cookies that are always sent (net.ipv4.tcp_syncookies=2)
// count for nothing.
func NewSYNDrops(cfg RiseConfig, counters func() (evidence.Counters, error)) *Rise {
	return newRise("syn_drops", "SYNs that found their queue full", "{packet}", cfg, counters,
		[]string{"TcpExt.TCPReqQFullDrop", "TcpExt.TCPReqQFullDoCookies"},
		[]string{"TcpExt.SyncookiesSent", "TcpExt.SyncookiesFailed", "TcpExt.ListenDrops"})
}
