package verdict

import "tcpcoroner/evidence"

// advices say what to do about a cause. A knob that is a sysctl is shown with its
// value on this host.
var advices = map[evidence.Cause][]evidence.Advice{
	evidence.CauseTimeout: {
		{Text: "find out why the other side was slow, before any timer is raised"},
		{Text: "set timeouts so that the inner hop gives up before the outer one", SideEffect: "longer timeouts hold connections and memory longer"}},
	evidence.CauseStaleReuse: {
		{Text: "let the side that reuses connections close idle ones earlier than the side that serves them", SideEffect: "more connections are opened"},
		{Text: "retry idempotent requests once on a fresh connection"}},
	evidence.CauseBacklogFull: {
		{Text: "make the process accept faster: more workers, no work in the accept loop"},
		{Text: "raise the application's backlog, and the limit of the host with it", Knob: "net.core.somaxconn", SideEffect: "clients wait longer in the queue instead of failing"},
		{Text: "this decides between RST and silence when the queue is full", Knob: "net.ipv4.tcp_abort_on_overflow", SideEffect: "with 1, clients fail at once and do not retry"}},
	evidence.CauseConntrackFull: {
		{Text: "find who opens the connections: the top talkers"},
		{Text: "raise the table's maximum", Knob: "net.netfilter.nf_conntrack_max", SideEffect: "about 320 bytes of kernel memory an entry"},
		{Text: "let idle entries go earlier", Knob: "net.netfilter.nf_conntrack_tcp_timeout_established", SideEffect: "idle connections lose their state"}},
	evidence.CausePortsExhausted: {
		{Text: "reuse connections to the busy destination (keep-alive, pools)"},
		{Text: "widen the range of local ports", Knob: "net.ipv4.ip_local_port_range", SideEffect: "ports that services listen on must stay outside"},
		{Text: "let closed connections give their port back earlier", Knob: "net.ipv4.tcp_tw_reuse"}},
	evidence.CauseStateLost: {
		{Text: "send keepalives more often than the shortest timeout on the path", Knob: "net.ipv4.tcp_keepalive_time", SideEffect: "only sockets with SO_KEEPALIVE send them"},
		{Text: "keep idle connections longer in the tracker", Knob: "net.netfilter.nf_conntrack_tcp_timeout_established", SideEffect: "the table fills sooner"}},
	evidence.CausePathDrop: {
		{Text: "let ICMP type 3 code 4 and ICMPv6 type 2 through, or clamp the MSS to the path"},
		{Text: "let TCP find the path MTU itself", Knob: "net.ipv4.tcp_mtu_probing", SideEffect: "slower start on paths with loss"}},
	evidence.CauseMemory: {
		{Text: "find what leaves sockets behind", Knob: "net.ipv4.tcp_max_orphans", SideEffect: "orphans take unswappable memory"},
		{Text: "look at TCP's memory limits", Knob: "net.ipv4.tcp_mem"}},
	evidence.CauseProcessDown: {
		{Text: "look at the unit's journal and restarts; drain connections before a stop"}},
	evidence.CausePolicy: {
		{Text: "compare the limit or rule with the traffic that it refused"}},
	evidence.CauseForged: {
		{Text: "ask who runs the devices between the two hosts; capture on both ends at once"}},
	evidence.CauseProtocolMismatch: {
		{Text: "check which of the two speaks TLS on this port"}},
}

// advice is what to do about the story's cause, with present values. A setting that
// a log line points to comes first.
func (c *caseFile) advice(s *story) []evidence.Advice {
	if s.opinion.claim.Benign {
		return nil
	}
	all := c.adviceOn(s.opinion.claim.Cause)
	if a, ok := s.settingAdvice(); ok {
		all = append([]evidence.Advice{a}, all...)
	}
	return all
}

func (c *caseFile) adviceOn(cause evidence.Cause) []evidence.Advice {
	all := append([]evidence.Advice(nil), advices[cause]...)
	for i := range all {
		all[i].Value = c.sysctl(all[i].Knob)
	}
	return all
}

// sysctl is the value of a setting on this host; empty if it was not read.
func (c *caseFile) sysctl(name string) string {
	for _, snap := range []*evidence.Snapshot{c.inc.After, c.inc.At} {
		if name == "" || snap == nil || snap.Implicated == nil {
			continue
		}
		for _, s := range snap.Implicated.Sysctls {
			if s.Name == name {
				return s.Value
			}
		}
	}
	return ""
}
