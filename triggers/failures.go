package triggers

import (
	"time"

	"tcpcoroner/evidence"
)

// DefaultConnectFailures fires at 20 in 10 s if that is four times the usual.
func DefaultConnectFailures() RiseConfig {
	return RiseConfig{Enabled: true, Window: 10 * time.Second, Threshold: 20, Factor: 4}
}

// NewConnectFailures makes the trigger "connect_failures": connections that were
// never established, out of this host or into it (RFC 4022, tcpAttemptFails).
func NewConnectFailures(cfg RiseConfig, counters func() (evidence.Counters, error)) *Rise {
	return newRise("connect_failures", "connections that failed to open", "{connection}", cfg, counters,
		[]string{"Tcp.AttemptFails"}, []string{"TcpExt.TCPSynRetrans", "TcpExt.EmbryonicRsts"})
}

// DefaultTimeouts fires at 3 in 10 s if that is four times the usual.
func DefaultTimeouts() RiseConfig {
	return RiseConfig{Enabled: true, Window: 10 * time.Second, Threshold: 3, Factor: 4}
}

// NewTimeouts makes the trigger "timeouts": connections that this host gave up
// because nobody answered. Retransmission and user timeouts send no RST: the
// counter is all there is (net/ipv4/tcp_timer.c, tcp_write_err).
func NewTimeouts(cfg RiseConfig, counters func() (evidence.Counters, error)) *Rise {
	return newRise("timeouts", "connections given up for want of an answer", "{connection}", cfg, counters,
		[]string{"TcpExt.TCPAbortOnTimeout"}, []string{"TcpExt.TCPTimeouts", "Tcp.RetransSegs"})
}
