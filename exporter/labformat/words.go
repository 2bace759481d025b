package labformat

import "tcpcoroner/evidence"

// origins are the words for where a RST came from. This host without saying who
// on it has no word; a sender beside its TCP and its filter forges.
var origins = map[evidence.Origin]string{
	evidence.OriginLocalProcess:   "local-process",
	evidence.OriginLocalKernel:    "local-kernel",
	evidence.OriginLocalNetfilter: "local-firewall",
	evidence.OriginLocalOther:     "local-process",
	evidence.OriginLocalHost:      "",
	evidence.OriginPeerProcess:    "remote",
	evidence.OriginPeerKernel:     "remote",
	evidence.OriginPeerHost:       "remote",
	evidence.OriginMiddlebox:      "middlebox",
	evidence.OriginMiddleboxNear:  "middlebox",
	evidence.OriginMiddleboxFar:   "middlebox",
	evidence.OriginNAT:            "middlebox",
	evidence.OriginForwarded:      "forwarded",
	evidence.OriginNone:           "none",
	evidence.OriginUnknown:        "",
}

// mechanism is the word for how a RST was born on this host, and elsewhere, where
// less can be told apart: there the format's umbrella words are exact.
type mechanism struct{ here, elsewhere string }

var mechanisms = map[evidence.Mechanism]mechanism{
	evidence.MechanismRefused:          {"refused", "refused"},
	evidence.MechanismRefusedListener:  {"no-listener", "no-listener"},
	evidence.MechanismRefusedFilter:    {"firewall-reject", "firewall-reject"},
	evidence.MechanismRefusedRateLimit: {"firewall-reject", "firewall-reject"},
	evidence.MechanismNoSocket:         {"no-socket", "no-such-connection"},
	evidence.MechanismStateLost:        {"no-socket", "no-socket"},
	evidence.MechanismStateLostNAT:     {"no-socket", "no-socket"},
	evidence.MechanismLateData:         {"late-data", "late-data"},
	evidence.MechanismActiveAbort:      {"abortive-close", "abortive-close"},
	evidence.MechanismUnread:           {"unread-close", "unread-close"},
	evidence.MechanismLinger:           {"linger-close", "linger-close"},
	evidence.MechanismKilledSocket:     {"abortive-close", "abortive-close"},
	evidence.MechanismListenerClosed:   {"abortive-close", "abortive-close"},
	evidence.MechanismProcessExit:      {"process-exit", "process-exit"},
	evidence.MechanismMemory:           {"", ""}, // the kernel's own decision has no word
	evidence.MechanismKeepalive:        {"tcp-timer", "tcp-timer"},
	evidence.MechanismAfterFIN:         {"late-data", "no-such-connection"},
	evidence.MechanismQueueOverflow:    {"overflow", "overflow"},
	evidence.MechanismConntrackFull:    {"none", "none"}, // it drops, and sends nothing
	evidence.MechanismPortExhaustion:   {"none", "none"}, // nothing is sent at all
	evidence.MechanismInjected:         {"injected", "injected"},
	evidence.MechanismInjectedBlind:    {"injected", "injected"},
	evidence.MechanismSilent:           {"none", "none"},
	evidence.MechanismMTUBlackhole:     {"", ""}, // says why, not how the RST behind it was born
	evidence.MechanismUnknown:          {"", ""},
}

func mechanismOf(c evidence.Claim) string {
	m := mechanisms[c.Mechanism]
	if c.Origin.Local() {
		return m.here
	}
	return m.elsewhere
}

var parties = map[evidence.Party]string{
	evidence.Client:       "client",
	evidence.Proxy:        "proxy",
	evidence.Server:       "server",
	evidence.Network:      "network",
	evidence.PartyUnknown: "",
}

// causes are the words for why. Memory pressure has none.
var causes = map[evidence.Cause]string{
	evidence.CauseAppAbort:         "app-abort",
	evidence.CauseTimeout:          "timeout",
	evidence.CausePolicy:           "policy",
	evidence.CauseProcessDown:      "process-down",
	evidence.CauseBacklogFull:      "backlog-full",
	evidence.CauseConntrackFull:    "conntrack-full",
	evidence.CausePortsExhausted:   "ports-exhausted",
	evidence.CauseStaleReuse:       "stale-reuse",
	evidence.CauseStateLost:        "state-lost",
	evidence.CausePathDrop:         "path-drop",
	evidence.CauseForged:           "forged",
	evidence.CauseProtocolMismatch: "protocol-mismatch",
	evidence.CauseMemory:           "",
	evidence.CauseNormalClose:      "normal-close",
	evidence.CauseScan:             "scan",
	evidence.CauseHealthCheck:      "health-check",
	evidence.CauseUnknown:          "",
}

// otherKind is the alarm that has no word of its own.
const otherKind = "other"

// kinds are the words for the triggers.
var kinds = map[string]string{
	"manual":          "",
	"resets":          "rst-spike",
	"reset_rate":      "rst-spike",
	"conntrack":       "conntrack-near-full",
	"listen":          "listen-overflow",
	"accept_queue":    "listen-overflow", // about to
	"logs":            otherKind,
	"memory":          otherKind,
	"ports":           otherKind,
	"restarts":        otherKind,
	"retransmissions": otherKind,
}
